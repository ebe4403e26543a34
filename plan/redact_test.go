package plan

import "testing"

func TestRedact(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"ADD http://me:pass@host/f /f":             "ADD http://me:xxxxx@host/f /f",
		"https://x:p%40s:s@host:80/r.git#main:sub": "https://x:xxxxx@host:80/r.git#main:sub",
		"https://:token@host/":                     "https://:xxxxx@host/",
		"https://user@host/a:b@c":                  "https://user@host/a:b@c",
		"https://host:80/a@b":                      "https://host:80/a@b",
		"COPY a:b@c /":                             "COPY a:b@c /",
		`ADD ["http://a:b@c/d","/"]`:               `ADD ["http://a:xxxxx@c/d","/"]`,
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
}
