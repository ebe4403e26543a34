package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"

	"github.com/strake-build/strake/progress"
)

const formatHelp = `print by a Go template, or 'json', or 'table TEMPLATE'`

// column is a column of a table: a field of the rows, and its heading.
type column struct{ field, heading string }

// printTable prints rows, structs, as a table of the columns given, or as the
// format says.
func printTable(w io.Writer, format string, columns, all []column, rows []any) error {
	tmpl, isTable := strings.CutPrefix(format, "table")
	if format != "" && !(isTable && (tmpl == "" || tmpl[0] == ' ' || tmpl[0] == '\\' || tmpl[0] == '{')) {
		return printItems(w, format, rows)
	}
	tmpl = strings.TrimSpace(tmpl)
	if tmpl == "" {
		var fields []string
		for _, c := range columns {
			fields = append(fields, "{{."+c.field+"}}")
		}
		tmpl = strings.Join(fields, "\t")
	}
	t, err := parseTemplate(tmpl)
	if err != nil {
		return err
	}
	headings := map[string]string{}
	for _, c := range append(columns, all...) {
		headings[c.field] = c.heading
	}
	tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	for i := -1; i < len(rows); i++ {
		var data any = headings
		if i >= 0 {
			data = rows[i]
		}
		if err := execute(tw, t, data); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// printItems prints each item by a template on a line of its own.
func printItems(w io.Writer, format string, items []any) error {
	if format == "json" {
		format = "{{json .}}"
	}
	t, err := parseTemplate(format)
	if err != nil {
		return err
	}
	return executeAll(w, t, items)
}

// printStrict is printItems for maps: a key that is not there is an error.
func printStrict(w io.Writer, format string, items []any) error {
	t, err := parseTemplate(format)
	if err != nil {
		return err
	}
	return executeAll(w, t.Option("missingkey=error"), items)
}

func executeAll(w io.Writer, t *template.Template, items []any) error {
	for _, item := range items {
		if err := execute(w, t, item); err != nil {
			return err
		}
	}
	return nil
}

func execute(w io.Writer, t *template.Template, data any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return usagef("--format: %w", err)
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

// parseTemplate parses a template with the functions that Docker's have. \t and
// \n stand for what they do elsewhere.
func parseTemplate(s string) (*template.Template, error) {
	s = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(s)
	t, err := template.New("").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			var b bytes.Buffer
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(v); err != nil {
				return "", err
			}
			return strings.TrimSpace(b.String()), nil
		},
		"split": strings.Split,
		"join":  strings.Join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		//lint:ignore SA1019 Docker's templates have it
		"title":    strings.Title,
		"truncate": func(s string, n int) string { return s[:min(n, len(s))] },
		"pad": func(s string, before, after int) string {
			return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
		},
		"println": func(v any) string { return fmt.Sprintln(v) },
		"isSlice": func(v any) bool { return reflect.ValueOf(v).Kind() == reflect.Slice },
	}).Parse(s)
	if err != nil {
		return nil, usagef("--format: %w", err)
	}
	return t, nil
}

// shortID is the short form of an image ID.
func shortID(id string) string {
	_, hex, ok := strings.Cut(id, ":")
	if !ok {
		hex = id
	}
	return hex[:min(12, len(hex))]
}

// since tells how long ago t was. Times before 2000 are not times of anything:
// strake gives the same one to all images.
func since(t time.Time) string {
	if t.Year() < 2000 {
		return "N/A"
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

// size is a number of bytes for people, as Docker prints it.
func size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// cleaned makes text of an image fit for a cell of a table.
func cleaned(s string) string { return progress.Clean(s) }
