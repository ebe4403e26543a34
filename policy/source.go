package policy

import (
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/plan"
)

// The schemes of identifiers.
const (
	SchemeImage  = "docker-image://"
	SchemeLayout = "oci-layout://"
	SchemeLocal  = "local://"
	SchemeGit    = "git://"
)

// Names of attributes, as in BuildKit.
const (
	attrChecksum       = "http.checksum"
	attrFilename       = "http.filename"
	attrPerm           = "http.perm"
	attrUID            = "http.uid"
	attrGID            = "http.gid"
	attrFullURL        = "git.fullurl"
	attrKeepGitDir     = "git.keepgitdir"
	attrGitChecksum    = "git.checksum"
	attrSkipSubmodules = "git.skipsubmodules"
	attrAuthToken      = "git.authtokensecret" // #nosec G101 -- the name of an attribute
)

// SourceOf is the source of an op; ok is false if it fetches nothing. local gives
// the client's name of a directory.
func SourceOf(op plan.Op, local func(string) string) (src Source, ok bool) {
	attrs := map[string]string{}
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	flag := func(key string, on bool) {
		if on {
			attrs[key] = "true"
		}
	}
	switch op := op.(type) {
	case *plan.Image:
		if op.Layout != "" {
			return Source{Identifier: SchemeLayout + strings.TrimPrefix(op.Ref, SchemeLayout)}, true
		}
		return Source{Identifier: SchemeImage + op.Ref}, true
	case *plan.Local:
		return Source{Identifier: SchemeLocal + local(op.Name)}, true
	case *plan.HTTP:
		set(attrChecksum, op.Checksum.String())
		set(attrFilename, op.Filename)
		if op.Mode != 0 {
			attrs[attrPerm] = "0" + strconv.FormatUint(uint64(op.Mode), 8)
		}
		if op.UID != 0 || op.GID != 0 {
			attrs[attrUID], attrs[attrGID] = strconv.Itoa(op.UID), strconv.Itoa(op.GID)
		}
		return Source{op.URL, attrs}, true
	case *plan.Git:
		attrs[attrFullURL] = op.Remote
		flag(attrKeepGitDir, op.KeepGitDir)
		flag(attrSkipSubmodules, op.SkipSubmodules)
		set(attrGitChecksum, op.Checksum)
		set(attrAuthToken, op.AuthToken)
		return Source{GitIdentifier(op), attrs}, true
	}
	return Source{}, false
}

// GitIdentifier is the identifier of a git source: its URL without the protocol,
// which is an attribute.
func GitIdentifier(op *plan.Git) string {
	id := op.Remote
	if _, rest, ok := strings.Cut(id, "://"); ok {
		id = rest
	} else { // user@host:path
		id = strings.Replace(id, ":", "/", 1)
	}
	if i := strings.LastIndex(id[:strings.IndexByte(id+"/", '/')], "@"); i >= 0 {
		id = id[i+1:]
	}
	id = SchemeGit + id
	sub := strings.TrimPrefix(op.Subdir, "/")
	if op.Ref != "" || sub != "" {
		id += "#" + op.Ref
	}
	if sub != "" {
		id += ":" + sub
	}
	return id
}

// Op is the op that fetches the source. Images are none of its business: their
// references must be looked up first.
func (s Source) Op() (plan.Op, error) {
	scheme, rest, _ := strings.Cut(s.Identifier, "://")
	switch scheme {
	case "local":
		return &plan.Local{Name: localName(rest)}, nil
	case "http", "https":
		return s.http()
	case "git":
		return s.git(rest), nil
	}
	return nil, fmt.Errorf("source policy: a conversion to %q is not supported here", s.Identifier)
}

// localName is what plans call a directory of the client.
func localName(name string) string {
	if name == "context" {
		return name
	}
	return "context:" + name
}

func (s Source) http() (*plan.HTTP, error) {
	op := &plan.HTTP{URL: s.Identifier, Filename: s.Attrs[attrFilename]}
	if v := s.Attrs[attrChecksum]; v != "" {
		d, err := digest.Parse(v)
		if err != nil {
			return nil, fmt.Errorf("%s=%s: %w", attrChecksum, v, err)
		}
		op.Checksum = d
	}
	for key, base := range map[string]int{attrPerm: 0, attrUID: 10, attrGID: 10} {
		v, ok := s.Attrs[key]
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(v, base, 32)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%s=%q is not a number", key, v)
		}
		switch key {
		case attrPerm:
			op.Mode = uint32(n) & 0o7777
		case attrUID:
			op.UID = int(n)
		case attrGID:
			op.GID = int(n)
		}
	}
	if op.Filename == "" {
		op.Filename = "download"
		if u, err := url.Parse(s.Identifier); err == nil {
			if b := path.Base(u.Path); b != "." && b != "/" {
				op.Filename = b
			}
		}
	}
	return op, nil
}

func (s Source) git(rest string) *plan.Git {
	remote, fragment, _ := strings.Cut(rest, "#")
	ref, sub, _ := strings.Cut(fragment, ":")
	op := &plan.Git{
		Remote: "https://" + remote, Ref: ref, Subdir: sub, Checksum: s.Attrs[attrGitChecksum],
		KeepGitDir: s.Attrs[attrKeepGitDir] == "true", SkipSubmodules: s.Attrs[attrSkipSubmodules] == "true",
		AuthToken: s.Attrs[attrAuthToken],
	}
	// The full URL is that of the identifier, unless only one of them was
	// converted: then what was converted counts.
	if full, _, _ := strings.Cut(s.Attrs[attrFullURL], "#"); full != "" {
		if strings.TrimPrefix(GitIdentifier(&plan.Git{Remote: full}), SchemeGit) == remote {
			op.Remote = full
		}
	}
	return op
}
