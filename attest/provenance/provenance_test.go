package provenance

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/plan"
)

// example is a build of an image, a file and a directory of the client.
func example() (Build, Target) {
	platform := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	image := &plan.Step{Op: &plan.Image{Ref: "docker.io/library/base:1", Digest: digest.FromString("manifest"), Platform: platform}}
	file := &plan.Step{Op: &plan.HTTP{URL: "https://me:hunter2@example.com/data.txt", Filename: "data.txt"}}
	local := &plan.Step{Op: &plan.Local{Name: "context"}}
	top := &plan.Step{
		Op: &plan.Exec{
			Args: []string{"make"}, Network: plan.NetworkNone,
			Mounts: []plan.Mount{{Type: plan.MountSecret, ID: "token", Target: "/run/secrets/token", Input: -1}},
		},
		Inputs: []plan.Input{{Step: image}, {Step: file}, {Step: local}}, Name: "RUN make",
	}
	b := Build{
		Request: Request{Frontend: "dockerfile.v0", Args: map[string]string{
			"build-arg:WHO": "me", "build-arg:REPO": "https://me:hunter2@example.com/x.git", "target": "app", "filename": "Dockerfile",
		}},
		Started: time.Unix(1, 0), Platform: platform,
		Images: []Image{{Ref: "docker.io/library/base:1", Resolved: digest.FromString("manifest"), Platform: platform, Digest: digest.FromString("index")}},
		Fact: func(s *plan.Step) Fact {
			if s == file {
				return Fact{ID: digest.FromString("data").String()}
			}
			return Fact{}
		},
		Now: func() time.Time { return time.Unix(2, 0) },
	}
	return b, Target{Result: plan.Input{Step: top}, Platform: &platform}
}

func render(t *testing.T, o Options) string {
	t.Helper()
	b, target := example()
	a, err := New(o, b, target)
	if err != nil {
		t.Fatal(err)
	}
	data, err := a.Predicate(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// All that was fetched is named by a digest, and what is secret is not named.
func TestPredicate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		o          Options
		has, lacks []string
	}{
		"max": {Options{}, []string{
			digest.FromString("index").Encoded(), digest.FromString("data").Encoded(), `"build-arg:WHO": "me"`, `"target": "app"`,
			`"token"`, "https://xxxxx:xxxxx@example.com/data.txt", "https://xxxxx:xxxxx@example.com/x.git", `"startedOn": "1970-01-01T00:00:01Z"`,
			`"finishedOn": "1970-01-01T00:00:02Z"`, `"local://context"`,
		}, []string{"hunter2"}},
		"min": {Options{Min: true}, []string{digest.FromString("index").Encoded(), digest.FromString("data").Encoded(), `"target": "app"`}, []string{
			"hunter2", "WHO", "token", "llbDefinition",
		}},
		"v0.2": {Options{SLSA02: true, BuilderID: "https://ci.example/7"}, []string{
			`"materials"`, `"id": "https://ci.example/7"`, `"entryPoint": "Dockerfile"`, digest.FromString("data").Encoded(),
		}, []string{"hunter2", "buildDefinition"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := render(t, c.o)
			if !json.Valid([]byte(got)) {
				t.Errorf("not JSON: %s", got)
			}
			for _, s := range c.has {
				if !strings.Contains(got, s) {
					t.Errorf("%s is missing in:\n%s", s, got)
				}
			}
			for _, s := range c.lacks {
				if strings.Contains(got, s) {
					t.Errorf("%s is in:\n%s", s, got)
				}
			}
		})
	}
}

// A directory of the client is nothing that another could fetch.
func TestComplete(t *testing.T) {
	t.Parallel()
	b, target := example()
	if _, err := New(Options{Complete: true}, b, target); err == nil || !strings.Contains(err.Error(), `the directories ["context"]`) {
		t.Errorf("with a directory: %v", err)
	}
	target.Result.Step.Inputs = target.Result.Step.Inputs[:2]
	if _, err := New(Options{Complete: true}, b, target); err != nil {
		t.Errorf("without: %v", err)
	}
}

func TestParseOptions(t *testing.T) {
	t.Parallel()
	params, err := attest.Parse(attest.Provenance, `mode=min,version=v0.2,builder-id=https://ci.example/7,reproducible=true,"filename=a,b.json"`)
	if err != nil {
		t.Fatal(err)
	}
	want := Options{Min: true, SLSA02: true, BuilderID: "https://ci.example/7", Reproducible: true, File: "a,b.json"}
	if got, err := ParseOptions(params); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []map[string]string{{"mode": "most"}, {"version": "v2"}, {"reproducible": "perhaps"}, {"colour": "red"}} {
		if _, err := ParseOptions(bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}
