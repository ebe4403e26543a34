package parser

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"
	mode "github.com/tonistiigi/dchapes-mode"

	"github.com/strake-build/strake/parser/ignore"
	"github.com/strake-build/strake/plan"
)

// A transfer is a COPY or ADD.
type transfer struct {
	instructions.Command
	instructions.SourcesAndDest
	verb         string // COPY or ADD
	chown, chmod string
	exclude      []string
	link         bool
	parents      bool
	from         *plan.Step      // what paths are relative to; nil for scratch
	context      bool            // from is the build context
	ignore       *ignore.Matcher // of the context

	// ADD only.
	keepGit  *bool
	checksum string
	unpack   *bool

	action plan.Copy // what all actions have in common
	op     plan.File
	inputs []plan.Input
	name   string
}

func (s *stage) copyFiles(c *instructions.CopyCommand) error {
	tr := &transfer{
		Command: c, SourcesAndDest: c.SourcesAndDest, verb: "COPY", chown: c.Chown, chmod: c.Chmod,
		exclude: c.ExcludePatterns, link: c.Link, parents: c.Parents,
	}
	if len(s.current.sources) == 0 {
		return s.fromContext(tr)
	}
	from := s.current.sources[0]
	if !from.done {
		e := s.t.errorf(c, "cannot copy from stage %q, it needs to be defined before current stage %q", c.From, s.Name)
		e.Hint = "a stage can only use stages before it"
		return mark(e, c.From)
	}
	tr.from = from.step
	return s.transfer(tr)
}

func (s *stage) addFiles(c *instructions.AddCommand) error {
	return s.fromContext(&transfer{
		Command: c, SourcesAndDest: c.SourcesAndDest, verb: "ADD", chown: c.Chown, chmod: c.Chmod,
		exclude: c.ExcludePatterns, link: c.Link, keepGit: c.KeepGitDir, checksum: c.Checksum, unpack: c.Unpack,
	})
}

// fromContext is a transfer from the build context.
func (s *stage) fromContext(tr *transfer) error {
	tr.context, tr.ignore = true, s.t.ignore
	return s.transfer(tr)
}

// transfer makes the steps of a COPY or ADD.
func (s *stage) transfer(tr *transfer) error {
	text := tr.verb
	if tr.parents {
		text += " --parents"
	}
	if tr.chown != "" {
		text += " --chown=" + tr.chown
	}
	if tr.chmod != "" {
		text += " --chmod=" + tr.chmod
	}
	if err := s.prepare(tr); err != nil {
		return err
	}
	display := s.displayText(s.t.expander, tr.Command.(fmt.Stringer).String(), s.env)
	tr.name = s.stepName(display, s.env)

	// The base comes first, and a copy that is linked has none.
	linked := tr.link && tr.chmod == "" && s.step != nil
	tr.inputs = []plan.Input{{Step: s.step}}
	if linked {
		tr.inputs[0] = plan.Input{}
	}
	for _, src := range tr.SourcePaths {
		text += " " + src
		if err := s.addSource(tr, src); err != nil {
			return err
		}
	}
	for _, doc := range tr.SourceContents {
		text += " <<" + doc.Path
		file := path.Join("/", doc.Path)
		s.addCopy(tr, s.inlineFile(doc.Path, doc.Data, 0o644), plan.Copy{Source: file})
	}
	text += " " + tr.DestPath

	source := s.t.file.sourceAt(tr.Location())
	step := s.t.share(&plan.Step{
		Op: &tr.op, Inputs: tr.inputs, Platform: *s.platform, NoCache: s.noCache, Name: tr.name, Source: source,
	})
	if linked {
		step = s.t.share(&plan.Step{
			Op: &plan.Merge{}, Inputs: []plan.Input{{Step: s.step}, {Step: step}}, Platform: *s.platform, NoCache: s.noCache,
			Name: strings.Replace(tr.name, display, "LINK "+display, 1), Internal: true, Source: source,
		})
	}
	s.step = step
	return s.record(text+" # buildkit", true)
}

// prepare checks the flags and works out what all actions have in common.
func (s *stage) prepare(tr *transfer) error {
	tr.action = plan.Copy{Dest: s.destination(tr.DestPath), CreateParents: true, Exclude: tr.exclude}
	if tr.chown != "" {
		o, named := owner(tr.chown)
		if tr.link && named {
			return mark(s.t.errorf(tr.Command, "%s --chown=%s: names can't be looked up with --link; use numbers", tr.verb, tr.chown), "--chown")
		}
		tr.action.Owner = o
	}
	if tr.chmod != "" {
		m, err := chmod(tr.chmod)
		if err != nil {
			return mark(s.t.errorf(tr.Command, "%s --chmod=%s: %w", tr.verb, shorten(tr.chmod), err), "--chmod")
		}
		tr.action.Mode = m
	}
	if tr.checksum != "" {
		fault := func(why string) error {
			return mark(s.t.errorf(tr.Command, "ADD --checksum: %s", why), "--checksum")
		}
		if len(tr.SourcePaths) != 1 || len(tr.SourceContents) > 0 {
			return fault("there has to be exactly one source")
		}
		src := tr.SourcePaths[0]
		if _, git, _ := parseGit(src); !git && !isURL(src) {
			return fault("the source has to be an http or git URL")
		}
	}
	return nil
}

// addSource adds the action for one source of the instruction.
func (s *stage) addSource(tr *transfer, src string) error {
	git, isGit, err := parseGit(src)
	if err != nil {
		return mark(s.t.errorf(tr.Command, "%s %s: %w", tr.verb, shorten(src), err), src)
	}
	if tr.verb == "COPY" && (isGit || isURL(src)) {
		e := s.t.errorf(tr.Command, "COPY %s: the source can't be a URL", shorten(src))
		e.Hint = "ADD can fetch it"
		return mark(e, src)
	}
	switch {
	case isGit:
		return s.addGit(tr, git)
	case isURL(src):
		return s.addHTTP(tr, src)
	}
	return s.addPath(tr, src)
}

// addPath adds the action for a path of the context, a stage or an image.
func (s *stage) addPath(tr *transfer, src string) error {
	s.lintIgnored(tr, src)
	if tr.context && tr.from == nil {
		var err error
		if tr.from, err = s.mainContext(); err != nil {
			return err
		}
	}
	a := plan.Copy{FollowLinks: true, ContentsOnly: true, Unpack: tr.verb == "ADD"}
	if tr.unpack != nil {
		a.Unpack = *tr.unpack
	}
	if tr.parents {
		// What follows "/./" is kept in the destination; without, all is.
		parent, pattern, ok := strings.Cut(src, "/./")
		if !ok {
			parent, pattern = "/", src
		}
		a.Include = []string{strings.TrimPrefix(path.Join("/", pattern), "/")}
		if !plan.HasWildcards(parent) && !plan.HasWildcards(pattern) {
			a.Required = []string{path.Join("/", parent, pattern)}
		}
		src = parent
	}
	a.Source = path.Join("/", src)
	if plan.HasWildcards(a.Source) {
		a.Wildcard, a.AllowNoMatch = true, true
	}
	s.addCopy(tr, tr.from, a)
	return nil
}

func (s *stage) addHTTP(tr *transfer, src string) error {
	op := &plan.HTTP{URL: src, Filename: urlBase(src)}
	if tr.checksum != "" {
		d, err := digest.Parse(tr.checksum)
		if err != nil {
			return mark(s.t.errorf(tr.Command, "ADD --checksum=%s: %w", shorten(tr.checksum), err), "--checksum")
		}
		op.Checksum = d
	}
	a := plan.Copy{Source: "/" + op.Filename}
	if tr.unpack != nil {
		a.Unpack = *tr.unpack
	}
	s.addCopy(tr, s.addStep(op, tr.name, nil), a)
	return nil
}

func (s *stage) addGit(tr *transfer, g *gitSource) error {
	if tr.keepGit != nil && g.keepGitDir != nil && *tr.keepGit != *g.keepGitDir {
		return s.t.errorf(tr.Command, "ADD: --keep-git-dir and the URL contradict each other")
	}
	if tr.checksum != "" && g.op.Checksum != "" && tr.checksum != g.op.Checksum {
		return s.t.errorf(tr.Command, "ADD: the checksums %q and %q contradict each other", shorten(tr.checksum), shorten(g.op.Checksum))
	}
	op := g.op
	for _, keep := range []*bool{tr.keepGit, g.keepGitDir} {
		if keep != nil {
			op.KeepGitDir = *keep
		}
	}
	if op.Checksum == "" {
		op.Checksum = tr.checksum
	}
	if err := g.byCommit(&op); err != nil {
		return s.t.errorf(tr.Command, "ADD: %w", err)
	}
	op.Advice = s.t.gitAdvice
	s.addCopy(tr, s.addStep(&op, tr.name, nil), plan.Copy{Source: "/", ContentsOnly: true})
	return nil
}

// addCopy adds an action that copies from a step.
func (s *stage) addCopy(tr *transfer, from *plan.Step, a plan.Copy) {
	a.Dest, a.CreateParents, a.Owner, a.Mode = tr.action.Dest, true, tr.action.Owner, tr.action.Mode
	a.Exclude = tr.action.Exclude
	for i := 1; i < len(tr.inputs) && a.Input == 0; i++ {
		if tr.inputs[i].Step == from {
			a.Input = i
		}
	}
	if a.Input == 0 {
		a.Input = len(tr.inputs)
		tr.inputs = append(tr.inputs, plan.Input{Step: from})
	}
	tr.op.Actions = append(tr.op.Actions, &a)
}

// destination makes a path absolute and keeps the ending that makes it a
// directory.
func (s *stage) destination(p string) string {
	end := ""
	switch {
	case strings.HasSuffix(p, "/."):
		end = "/."
	case strings.HasSuffix(p, "/"), p == "", p == ".":
		end = "/"
	}
	if !path.IsAbs(p) {
		p = path.Join(s.dir, p)
	}
	if p = path.Clean(p); end != "" {
		p = strings.TrimSuffix(p, "/") + end
	}
	return p
}

// owner reads user[:group], and reports whether it holds names.
func owner(s string) (*plan.Owner, bool) {
	user, group, _ := strings.Cut(s, ":")
	o, named := &plan.Owner{User: user, Group: group}, false
	for _, id := range []*string{&o.User, &o.Group} {
		if *id == "root" {
			*id = "0"
		}
		if *id != "" {
			_, err := strconv.ParseInt(*id, 10, 32)
			named = named || err != nil
		}
	}
	return o, named
}

// chmod checks the mode of --chmod, octal or symbolic.
func chmod(s string) (string, error) {
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		if n > 0o7777 {
			return "", badMode(s)
		}
		return fmt.Sprintf("%04o", n), nil
	}
	if strings.ContainsAny(s[:1], "0123456789") {
		return "", badMode(s)
	}
	if _, err := mode.Parse(s); err != nil {
		return "", errors.New(`a mode is octal, such as 0755, or symbolic, such as u+x,go-w`)
	}
	return s, nil
}

func badMode(s string) error {
	return fmt.Errorf("invalid chmod parameter: '%s'. it should be octal string and between 0 and 07777", shorten(s))
}

func isURL(src string) bool {
	return strings.HasPrefix(src, "http://") || strings.HasPrefix(src, "https://")
}
