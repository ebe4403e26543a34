package progress

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, want string }{
		"plain":             {"RUN make", "RUN make"},
		"colour":            {"\x1b[1;31mred\x1b[0m", "red"},
		"title":             {"a\x1b]0;owned\x07b", "ab"},
		"title, ST":         {"a\x1b]0;owned\x1b\\b", "ab"},
		"hyperlink":         {"\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\", "text"},
		"unended title":     {"a\x1b]0;hidden", "a]0;hidden"},
		"unended csi":       {"a\x1b[12", "a[12"},
		"broken csi":        {"\x1b[\x01mtext", "[mtext"},
		"escape at end":     {"a\x1b", "a"},
		"charset":           {"\x1b(0lqk", "lqk"},
		"reset":             {"\x1bcgone", "gone"},
		"c1 csi":            {"a\u009b31mb", "a31mb"},
		"bell and erase":    {"a\x07\x08\x7fb", "ab"},
		"newline":           {"a\nb\r\nc", "a b  c"},
		"tab":               {"a\tb", "a b"},
		"not UTF-8":         {"a\xff\xfeb", "a\ufffd\ufffdb"},
		"right to left":     {"a\u202egnp.exe", "agnp.exe"},
		"other scripts":     {"größe 日本 ✓", "größe 日本 ✓"},
		"joined emoji":      {"👩\u200d💻", "👩\u200d💻"},
		"tag characters":    {"a\U000e0041b", "ab"},
		"line separator":    {"a\u2028b", "a b"},
		"device control":    {"\x1bP1$r0m\x1b\\x", "x"},
		"nested unfinished": {"\x1b]0;\x1b[31mred", "]0;red"},
	} {
		if got := Clean(c.in); got != c.want {
			t.Errorf("%s: Clean(%q) = %q, want %q", name, c.in, got, c.want)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"plain", "\x1b[31m", "\x1b]0;\x07", "\xff\x9b", "\u202e", "\x1b\x1b[[", "\x1b(", "日本"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Clean(s)
		if !utf8.ValidString(got) {
			t.Fatalf("Clean(%q) = %q is not UTF-8", s, got)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return unicode.IsControl(r) || hidden(r) }); i >= 0 {
			t.Fatalf("Clean(%q) = %q controls the terminal at %d", s, got, i)
		}
		if again := Clean(got); again != got {
			t.Fatalf("Clean(%q) = %q, and again %q", s, got, again)
		}
	})
}

func TestSplitter(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLine)
	for name, c := range map[string]struct{ in, want []string }{
		"whole lines":        {[]string{"a\nb\n"}, []string{"a", "b"}},
		"in pieces":          {[]string{"a", "b\nc", "", "\n"}, []string{"ab", "c"}},
		"empty lines":        {[]string{"\n\n"}, []string{"", ""}},
		"no end":             {[]string{"a\nb"}, []string{"a", "b"}},
		"dos":                {[]string{"a\r\nb\r", "\n"}, []string{"a", "b"}},
		"progress bar":       {[]string{"1%\r50%", "\r100%\n"}, []string{"100%"}},
		"bar ends at start":  {[]string{"1%\r2%\r\n"}, []string{"2%"}},
		"too long":           {[]string{long + "y\n"}, []string{long, "y"}},
		"too long in pieces": {[]string{long[:10], long, "y"}, []string{long, long[:10] + "y"}},
		"exactly":            {[]string{long, "\n"}, []string{long}},
		"long bar":           {[]string{strings.Repeat(long[:100]+"\r", 1000) + "end\n"}, []string{"end"}},
	} {
		var s splitter
		got := []string{}
		emit := func(l []byte) { got = append(got, string(l)) }
		for _, p := range c.in {
			s.write([]byte(p), emit)
			if len(s.buf) > maxLine {
				t.Errorf("%s: %d bytes are kept", name, len(s.buf))
			}
		}
		s.flush(emit)
		if strings.Join(got, "|") != strings.Join(c.want, "|") {
			t.Errorf("%s: got %.200q, want %.200q", name, got, c.want)
		}
	}
}
