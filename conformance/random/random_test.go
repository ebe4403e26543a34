package random

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestInputs(t *testing.T) {
	t.Parallel()
	unseen := map[string]bool{}
	for _, word := range strings.Fields("FROM ARG ENV LABEL COPY ADD WORKDIR USER CMD ENTRYPOINT SHELL EXPOSE VOLUME STOPSIGNAL MAINTAINER HEALTHCHECK ONBUILD RUN " +
		"--chown= --chmod= --link --parents --exclude= --from= --platform= --unpack= --mount= << escape=` .dockerignore") {
		unseen[word] = true
	}
	for seed := range uint64(300) {
		in := New(seed)
		text := in.String()
		if again := New(seed).String(); again != text {
			t.Fatalf("seed %d gives two inputs:\n%s\n%s", seed, text, again)
		}
		for word := range unseen {
			if strings.Contains(text, word) {
				delete(unseen, word)
			}
		}
		dir := t.TempDir()
		if err := in.Write(dir); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "Dockerfile")); err != nil || string(data) != in.Dockerfile() {
			t.Errorf("the build file is %q, %v", data, err)
		}
	}
	for word := range unseen {
		t.Errorf("300 inputs, and none has %s", word)
	}
}

func TestShrink(t *testing.T) {
	t.Parallel()
	in := &Input{
		Instructions: []string{"FROM scratch", "ENV A=1", "COPY a /", "ENV B=2", "RUN bad", "ENV C=3"}, Directives: []string{"# x"},
		Files: []File{{Path: "a", Type: 'f'}, {Path: "b", Type: 'f'}, {Path: "c", Type: 'd'}}, IgnoreName: ".dockerignore", Ignore: []string{"x"}, Target: "t",
	}
	small := in.Shrink(func(in *Input) bool {
		return slices.Contains(in.Instructions, "RUN bad") && slices.ContainsFunc(in.Files, func(f File) bool { return f.Path == "b" })
	})
	if small.Dockerfile() != "RUN bad\n" || len(small.Files) != 1 || small.IgnoreName != "" || small.Target != "" {
		t.Errorf("shrunk to\n%s", small)
	}
}
