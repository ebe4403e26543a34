package plan

import (
	"strings"
	"testing"
)

func TestIsCommit(t *testing.T) {
	sha1, sha256 := strings.Repeat("0123456789abcdef0123", 2), strings.Repeat("0123456789abcdef", 4)
	for _, ref := range []string{sha1, sha256} {
		if !IsCommit(ref) {
			t.Errorf("%q is none", ref)
		}
	}
	for _, ref := range []string{"", "main", sha1[1:], sha1 + "0", sha256 + "0", sha1 + "\n", strings.ToUpper(sha1), sha1[1:] + "g", sha1[1:] + "/", sha1[1:] + ":", sha1[1:] + "`"} {
		if IsCommit(ref) {
			t.Errorf("%q is one", ref)
		}
	}
}
