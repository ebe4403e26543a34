package parser

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// Each of these files would take gigabytes or more, or crash, without a bound.
func TestLimits(t *testing.T) {
	// Not parallel: it looks at the memory of the process.
	doubling := func(n int, verb string) string {
		return verb + " a=" + strings.Repeat("x", 64) + "\n" + strings.Repeat(verb+" a=$a$a\n", n)
	}
	chain := func(n int, body string) string {
		var b strings.Builder
		b.WriteString("FROM alpine AS s0\n" + body)
		for i := 1; i < n; i++ {
			fmt.Fprintf(&b, "FROM s%d AS s%d\n%s", i-1, i, body)
		}
		return b.String()
	}
	cases := map[string]struct{ file, want string }{
		"doubling ARG":      {doubling(40, "ARG") + "FROM alpine\n", "expand to more than 1 MiB"},
		"doubling ENV":      {"FROM alpine\n" + doubling(40, "ENV"), "expand to more than 1 MiB"},
		"doubling LABEL":    {"FROM alpine\n" + doubling(14, "ENV") + "LABEL l=$a$a", "expand to more than 1 MiB"},
		"default value":     {"FROM alpine\n" + doubling(14, "ENV") + "ENV b=${c:-$a$a}", "expand to more than 1 MiB"},
		"many in one word":  {"FROM alpine\n" + doubling(13, "ENV") + "ENV b=" + strings.Repeat("$a", 1000), "expand to more than 1 MiB"},
		"heredoc":           {"FROM alpine\n" + doubling(14, "ENV") + "COPY <<E /x\n$a\n$a\nE\n", "expand to more than 1 MiB"},
		"substitution":      {"FROM alpine\n" + doubling(10, "ENV") + "ENV b=${a//x/" + strings.Repeat("y", 5000) + "}", "expand to more than 1 MiB"},
		"quoted nesting":    {"FROM alpine\n" + doubling(5, "ENV") + `ENV b="${a//x/"${a//x/'}'${a//x/$a}}"}"`, "expand to more than 1 MiB"},
		"expose":            {"FROM alpine\n" + doubling(14, "ENV") + "EXPOSE $a$a\n", "expand to more than 1 MiB"},
		"platform":          {doubling(14, "ARG") + "FROM --platform=$a$a alpine\n", "expand to more than 1 MiB"},
		"environment":       {"FROM alpine\n" + doubling(13, "ENV") + vars(20, "ENV b%d=$a\n"), "environment is larger than 4 MiB"},
		"total of history":  {"FROM alpine\n" + doubling(13, "ARG") + strings.Repeat("RUN x\n", 2000), "come to more than 64 MiB"},
		"total of labels":   {"FROM alpine\n" + doubling(13, "ARG") + vars(2000, "LABEL l%d=$a\n"), "come to more than 64 MiB"},
		"stages with ports": {chain(900, "EXPOSE 1-65535\n"), "come to more than 64 MiB"},
		"stages with ENV":   {"FROM alpine AS s\n" + vars(9000, "ENV e%d=1\n") + strings.Repeat("FROM s AS s\n", 990), "come to more than 64 MiB"},
		"stages":            {strings.Repeat("FROM alpine\n", 1001), "more than 1000 stages"},
		"instructions":      {"FROM alpine\n" + strings.Repeat("USER a\n", 20_001), "more than 20000 instructions"},
		"nesting":           {"FROM alpine\nENV a=" + strings.Repeat("${a:-", 60) + strings.Repeat("}", 60), "nested more than 50 deep"},
		"nesting of a line": {"FROM alpine\nRUN <<E " + strings.Repeat(strings.Repeat("${a:-", 2000)+"\\\n", 20), "in one instruction"},
		"size":              {"FROM alpine\n" + strings.Repeat("#", 17<<20), "larger than 16 MiB"},
		"zero byte":         {"FROM alpine\nRUN a\x00b", "zero byte"},
		"UTF-16":            {"\xff\xfeF\x00R\x00", "save it as UTF-8"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before := allocated()
			f, err := Parse("Dockerfile", []byte(c.file))
			if err == nil {
				_, err = f.Plan(t.Context(), Options{BuildPlatform: amd64, Resolve: resolver(nil)})
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if mib := (allocated() - before) >> 20; mib > 3000 {
				t.Errorf("took %d MiB in all", mib)
			}
		})
	}
}

// vars repeats a line with a number in it.
func vars(n int, line string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, line, i)
	}
	return b.String()
}

// allocated returns how many bytes were ever allocated.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// What real files do is far below the bounds.
func TestLimitsAllow(t *testing.T) {
	t.Parallel()
	cases := map[string]string{
		"substitutions side by side": "FROM alpine\nARG V=1.2.3\nENV A=\"${V//./-}-${V//./_}-${V//./+}-${V%.*}-${V##*.}-${A:-${B:-${C:-x}}}\"\n",
		"long chain":                 "FROM alpine\n" + strings.Repeat("RUN make\n", 5000),
		"many stages":                "FROM alpine AS s\nRUN a\n" + strings.Repeat("FROM s AS s\nRUN a\n", 500),
		"large heredoc":              "FROM alpine\nCOPY <<E /x\n" + strings.Repeat(strings.Repeat("y", 1000)+"\n", 4000) + "E\n",
		"latin-1":                    "FROM alpine\n# caf\xe9\nRUN echo caf\xe9 \"$HOME\"\n",
		"CRLF":                       "FROM alpine\r\nRUN a \\\r\n  b\r\n",
	}
	for name, file := range cases {
		f, err := Parse("Dockerfile", []byte(file))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b, err := f.Plan(t.Context(), Options{BuildPlatform: amd64, Resolve: resolver(nil)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkBuild(t, b)
	}
}
