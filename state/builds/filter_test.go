package builds

import (
	"strings"
	"testing"
	"time"
)

func TestFilters(t *testing.T) {
	t.Parallel()
	now := time.Now()
	list := []Record{
		{Ref: "old", Status: Completed, Created: now.Add(-48 * time.Hour), Ended: now.Add(-47 * time.Hour), Context: "https://example.com/x.git"},
		{Ref: "bad", Status: Failed, Created: now.Add(-2 * time.Hour), Ended: now.Add(-2*time.Hour + time.Second), Attrs: map[string]string{"target": "app"}},
		{Ref: "runs", Status: Running, Created: now, Attrs: map[string]string{"vcs:source": "https://example.com/y.git"}},
	}
	for _, c := range []struct{ filters, want string }{
		{"", "old bad runs"},
		{"status==error", "bad"},
		{"status==error|status==running", "bad runs"},
		{"status==error,target==none", ""},
		{"target==app", "bad"},
		{"ref~=^r", "runs"},
		{"startedAt<24h", "old"},
		{"startedAt>=24h", "bad runs"},
		{"duration>1m", "old"},
		{"duration<=1s", "bad"},
		{"completedAt>24h", "bad"},
		{"repository==https://example.com/x.git", "old"},
		{"repository==https://example.com/y.git", "runs"},
		{"startedAt>" + now.Add(-time.Hour).UTC().Format(time.RFC3339), "runs"},
	} {
		var filters []string
		if c.filters != "" {
			filters = strings.Split(c.filters, "|")
		}
		match, err := ParseFilters(filters)
		if err != nil {
			t.Errorf("%s: %v", c.filters, err)
			continue
		}
		var got []string
		for _, r := range list {
			if match(r) {
				got = append(got, r.Ref)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %q, want %q", c.filters, got, c.want)
		}
	}
	for _, bad := range []string{"duration>long", "startedAt<yesterday", "status=="} {
		if _, err := ParseFilters([]string{bad}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
