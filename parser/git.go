package parser

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/strake-build/strake/internal/lazyregexp"
	"github.com/strake-build/strake/plan"
)

// gitSource is a git repository that ADD names.
type gitSource struct {
	op         plan.Git
	keepGitDir *bool // said by the URL
	fetchBy    bool  // "fetch-by-commit": the checksum is the commit, whatever the ref is now
}

var (
	urlScheme = lazyregexp.New(`^[a-zA-Z0-9]+://`)
	scpStyle  = lazyregexp.New(`^([a-zA-Z0-9-_]+)@([a-zA-Z0-9-.]+):(.*?)(?:\?(.*?))?(?:#(.*))?$`)
)

// parseGit reads the source of an ADD as a git repository: a git:// or ssh://
// URL, an http(s):// URL whose path ends in ".git", or user@host:path. After
// "#" comes ref[:subdir], and a query says more. git is false if src is
// something else.
func parseGit(src string) (g *gitSource, git bool, err error) {
	g = &gitSource{}
	var query url.Values
	var fragment string
	if scheme := urlScheme().FindString(src); scheme != "" {
		u, err := url.Parse(src)
		if err != nil {
			return nil, false, nil
		}
		switch strings.ToLower(strings.TrimSuffix(scheme, "://")) {
		case "git", "ssh":
		case "http", "https":
			if !strings.HasSuffix(u.Path, ".git") {
				return nil, false, nil
			}
		default:
			return nil, false, nil
		}
		query, fragment = u.Query(), u.Fragment
		u.Fragment, u.RawFragment, u.RawQuery = "", "", ""
		g.op.Remote = u.String()
	} else if m := scpStyle().FindStringSubmatch(src); m != nil {
		if query, err = url.ParseQuery(m[4]); err != nil {
			return nil, true, err
		}
		fragment = m[5]
		g.op.Remote = m[1] + "@" + m[2] + ":" + m[3]
	} else {
		return nil, false, nil
	}
	if fragment != "" {
		ref, subdir, _ := strings.Cut(fragment, ":")
		g.op.Ref, g.op.Subdir = ref, strings.TrimPrefix(path.Join("/", subdir), "/")
	}
	return g, true, g.setQuery(query)
}

// setQuery reads what the query of a git URL says.
func (g *gitSource) setQuery(query url.Values) error {
	names := make([]string, 0, len(query))
	for name := range query {
		names = append(names, name)
	}
	slices.Sort(names)
	set := func(field *string, what, value string) error {
		if *field != "" && *field != value {
			return fmt.Errorf("%s conflicts: %q and %q", what, *field, value)
		}
		*field = value
		return nil
	}
	for _, name := range names {
		if len(query[name]) != 1 {
			return fmt.Errorf("query %q is given several times", name)
		}
		value, err := query[name][0], error(nil)
		switch name {
		case "keep-git-dir", "submodules", "fetch-by-commit":
			on := true
			if value != "" {
				if on, err = strconv.ParseBool(value); err != nil {
					return fmt.Errorf("query %s=%s: not true or false", name, shorten(value))
				}
			}
			switch {
			case name == "keep-git-dir":
				g.keepGitDir = &on
			case name == "submodules":
				g.op.SkipSubmodules = !on
			default:
				g.fetchBy = on
			}
			continue
		}
		if value == "" {
			return fmt.Errorf("query %q has no value", name)
		}
		switch name {
		case "ref":
			err = set(&g.op.Ref, "ref", value)
		case "tag":
			err = set(&g.op.Ref, "ref", "refs/tags/"+strings.TrimPrefix(value, "refs/tags/"))
		case "branch":
			err = set(&g.op.Ref, "ref", "refs/heads/"+strings.TrimPrefix(value, "refs/heads/"))
		case "subdir":
			err = set(&g.op.Subdir, "subdir", value)
		case "checksum", "commit":
			err = set(&g.op.Checksum, "checksum", value)
		case "mtime":
			if value != "checkout" {
				err = fmt.Errorf("query mtime=%s is not supported", shorten(value))
			}
		default:
			err = fmt.Errorf("query %q is unknown", shorten(name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// byCommit makes an op ask for the commit that its checksum is, where the URL
// wants that.
func (g *gitSource) byCommit(op *plan.Git) error {
	if !g.fetchBy {
		return nil
	}
	if !plan.IsCommit(op.Checksum) {
		return errors.New("fetch-by-commit needs a checksum that is a whole commit")
	}
	op.Ref = op.Checksum
	return nil
}

// Git reads a build context that is a git repository, written as the source of
// an ADD is. ok is false if it is something else.
func Git(src string) (op *plan.Git, ok bool, err error) {
	g, ok, err := parseGit(src)
	if !ok || err != nil {
		return nil, ok, err
	}
	if g.keepGitDir != nil {
		g.op.KeepGitDir = *g.keepGitDir
	}
	if err := g.byCommit(&g.op); err != nil {
		return nil, true, err
	}
	return &g.op, true, nil
}

// Remote is the step of a named context that is a git repository or a file to be
// fetched by http. ok is false if value is something else.
func Remote(name, value string) (step *plan.Step, ok bool, err error) {
	op, ok, err := Git(value)
	switch {
	case ok && err == nil:
		return &plan.Step{Op: op, Name: "[context " + name + "] load git source " + value}, true, nil
	case ok:
		return nil, true, err
	case isURL(value):
		return &plan.Step{Op: &plan.HTTP{URL: value, Filename: urlBase(value)}, Name: "[context " + name + "] " + value}, true, nil
	}
	return nil, false, nil
}

// urlBase is the name of the file that a URL is fetched as.
func urlBase(s string) string {
	if u, err := url.Parse(s); err == nil {
		if b := path.Base(u.Path); b != "." && b != "/" {
			return b
		}
	}
	return "__unnamed__"
}
