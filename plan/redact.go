package plan

import (
	"regexp"
	"strings"
	"sync"
)

// userinfo is the name and password of a URL, as far as the password.
var userinfo = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@:'"]*):[^\s/?#'"]*@`)
})

// Redact returns text with "xxxxx" for the passwords of the URLs in it. What is
// shown or kept of URLs, in names of steps, histories, logs and records, goes
// through it.
func Redact(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	return userinfo().ReplaceAllString(text, "$1:xxxxx@")
}
