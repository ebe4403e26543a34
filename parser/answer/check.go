package answer

import (
	"errors"
	"fmt"
	"strings"

	"github.com/strake-build/strake/plan"
)

// CheckResult are the findings about a file, and the error that ended the check.
type CheckResult struct {
	Warnings []Warning   `json:"warnings"`
	Sources  []Source    `json:"sources"`
	Error    *CheckError `json:"buildError,omitempty"`

	excerpts []string // of the warnings
	excerpt  string   // of the error
}

// Warning is a finding.
type Warning struct {
	Rule        string    `json:"ruleName"`
	Description string    `json:"description,omitempty"`
	URL         string    `json:"url,omitempty"`
	Detail      string    `json:"detail,omitempty"`
	Location    *Location `json:"location,omitempty"`
}

// Source is a build file.
type Source struct {
	Filename string `json:"filename,omitempty"`
	Data     []byte `json:"data,omitempty"`
	Language string `json:"language,omitempty"`
}

// CheckError says why a file can't be built.
type CheckError struct {
	Message  string    `json:"message"`
	Location *Location `json:"location"`
}

// Check gives the findings about a file their form. err is nil, or a *plan.Error
// whose text is message.
func Check(f *plan.SourceFile, warnings []plan.Warning, err error, message string) CheckResult {
	out := CheckResult{Sources: []Source{{Filename: f.Name, Data: f.Data, Language: "Dockerfile"}}}
	for _, w := range warnings {
		out.Warnings = append(out.Warnings, Warning{
			Rule: w.Rule, Description: w.Detail, URL: w.URL, Detail: w.Text, Location: location(w.Source),
		})
		out.excerpts = append(out.excerpts, w.Source.Excerpt())
	}
	if err != nil {
		out.Error = &CheckError{Message: message, Location: &Location{}}
		var e *plan.Error
		if errors.As(err, &e) {
			out.Error.Location, out.excerpt = location(e.Source), e.Source.Excerpt()
		}
	}
	return out
}

// Status is the exit code of the check: 1 if anything was found.
func (c CheckResult) Status() int {
	if len(c.Warnings) > 0 || c.Error != nil {
		return 1
	}
	return 0
}

// Text is a paragraph for each finding, with its lines of the file.
func (c CheckResult) Text() string {
	var b strings.Builder
	for i, w := range c.Warnings {
		fmt.Fprintf(&b, "\nWARNING: %s", w.Rule)
		if w.URL != "" {
			fmt.Fprintf(&b, " - %s", w.URL)
		}
		fmt.Fprintf(&b, "\n%s\n%s", w.Detail, c.excerpts[i])
	}
	if c.Error != nil {
		fmt.Fprintf(&b, "\nERROR: %s\n%s", c.Error.Message, c.excerpt)
	}
	return b.String()
}
