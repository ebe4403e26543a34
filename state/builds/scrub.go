package builds

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strings"

	"github.com/strake-build/strake/internal/lazyregexp"
)

// secretName matches names of arguments whose values nobody should read in a
// record. The words are those of BuildKit's check SecretsUsedInArgOrEnv.
var secretName = lazyregexp.New(`(?i)(^|_)(apikey|auth|credentials?|key|password|pword|passwd|secret|token)(_|$)`)

// publicName excepts names that say that the value is public.
var publicName = lazyregexp.New(`(?i)(^|_)public(_|$)`)

// Hide returns what a record says of the value of a variable: the value, or if
// it may be secret three bytes of a hash, which tell that it changed and
// nothing more.
func Hide(name, value string) string {
	if secretName().MatchString(name) && !publicName().MatchString(name) && value != "" {
		sum := sha256.Sum256([]byte(name + "\x00" + value))
		return "(hidden " + hex.EncodeToString(sum[:3]) + ")"
	}
	return scrubURL(value)
}

// scrubURL leaves the credentials of a URL out.
func scrubURL(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || strings.ContainsAny(scheme, " /") {
		return s
	}
	authority, _, _ := strings.Cut(rest, "/")
	at := strings.LastIndexByte(authority, '@')
	if at < 0 {
		return s
	}
	user, _, password := strings.Cut(authority[:at], ":")
	if scheme == "ssh" && !password {
		return s // "git@" is no secret
	}
	if u, err := url.PathUnescape(user); err != nil || !password || u == "" {
		user = "" // a user alone is a token more often than a name
	} else {
		user += ":"
	}
	return scheme + "://" + user + "xxxxx@" + rest[at+1:]
}

// scrubAttrs leaves out of frontend attributes what may be secret.
func scrubAttrs(attrs map[string]string) map[string]string {
	out := make(map[string]string, len(attrs))
	for k, v := range attrs {
		if name, ok := strings.CutPrefix(k, "build-arg:"); ok {
			out[k] = Hide(name, v)
		} else {
			out[k] = scrubURL(v)
		}
	}
	return out
}
