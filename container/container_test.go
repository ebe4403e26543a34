package container

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		entrypoint, cmd []string // of the image
		override, args  []string
		want            []string
	}{
		"nothing":             {nil, nil, nil, nil, nil},
		"cmd":                 {nil, []string{"sh"}, nil, nil, []string{"sh"}},
		"args replace cmd":    {nil, []string{"sh"}, nil, []string{"ls", "-l"}, []string{"ls", "-l"}},
		"entrypoint and cmd":  {[]string{"app"}, []string{"-v"}, nil, nil, []string{"app", "-v"}},
		"entrypoint and args": {[]string{"app"}, []string{"-v"}, nil, []string{"-q"}, []string{"app", "-q"}},
		"other entrypoint":    {[]string{"app"}, []string{"-v"}, []string{"sh"}, nil, []string{"sh"}},
		"both other":          {[]string{"app"}, []string{"-v"}, []string{"sh"}, []string{"-c", "x"}, []string{"sh", "-c", "x"}},
		"no entrypoint":       {[]string{"app"}, []string{"-v"}, []string{}, []string{"ls"}, []string{"ls"}},
	} {
		conf := Config{Entrypoint: c.override, Args: c.args}
		conf.Image.Config.Entrypoint, conf.Image.Config.Cmd = c.entrypoint, c.cmd
		if diff := cmp.Diff(c.want, commandLine(conf)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	c := Config{Env: []string{"B=run", "C=3"}, Terminal: func(*os.File) {}}
	c.Image.Config.Env = []string{"PATH=/bin", "A=1", "B=image", "EMPTY="}
	want := []string{"PATH=/bin", "TERM=xterm", "A=1", "B=run", "EMPTY=", "C=3"}
	if diff := cmp.Diff(want, environment(c)); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if got := environment(Config{}); len(got) != 1 || got[0][:5] != "PATH=" {
		t.Errorf("environment of an image without one is %q", got)
	}
}
