package sbom

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
)

// BuildKit's protocol for generators: an image that is run with the file systems
// to look at mounted read-only, and a directory for what it finds.
const (
	sourceDir = "/run/src"
	outputDir = "/run/out"
	coreName  = "sbom"
)

// Generator is an image that makes SBOMs.
type Generator struct {
	Ref      string
	Image    *plan.Image // nil for an image without layers
	Platform ocispec.Platform
	Config   []byte // image configuration
	// Params are given to it as BUILDKIT_SCAN_<NAME>.
	Params map[string]string
}

// Scan is a step that runs the generator over a result, and over other file
// systems if it wants to, by their names. What it finds is in the input that is
// returned. name is for people.
func (g Generator) Scan(name string, target plan.Input, extras map[string]plan.Input, noCache bool) (plan.Input, error) {
	var img ocispec.Image
	if err := json.Unmarshal(g.Config, &img); err != nil {
		return plan.Input{}, fmt.Errorf("SBOM generator %s: image configuration: %w", g.Ref, err)
	}
	args := append(slices.Clone(img.Config.Entrypoint), img.Config.Cmd...)
	if len(args) == 0 {
		return plan.Input{}, fmt.Errorf("SBOM generator %s: the image has no command", g.Ref)
	}
	core := path.Join(sourceDir, "core", coreName)
	env := append(slices.Clone(img.Config.Env), "BUILDKIT_SCAN_DESTINATION="+outputDir+"/", "BUILDKIT_SCAN_SOURCE="+core)
	if len(extras) > 0 {
		env = append(env, "BUILDKIT_SCAN_SOURCE_EXTRAS="+path.Join(sourceDir, "extras"))
	}
	for _, k := range slices.Sorted(maps.Keys(g.Params)) {
		env = append(env, "BUILDKIT_SCAN_"+k+"="+g.Params[k])
	}
	dir := img.Config.WorkingDir
	if dir == "" {
		dir = "/"
	}
	op := &plan.Exec{
		Args: args, Env: env, Dir: dir,
		Mounts: []plan.Mount{
			{Type: plan.MountTmpfs, Target: "/tmp", Input: -1},
			{Type: plan.MountBind, Target: outputDir, Input: -1, Output: 1},
		},
	}
	step := &plan.Step{Op: op, Inputs: []plan.Input{{}}, Platform: g.Platform, NoCache: noCache, Name: fmt.Sprintf("[%s] generating sbom using %s", name, g.Ref)}
	if g.Image != nil {
		step.Inputs[0] = plan.Input{Step: &plan.Step{Op: g.Image, Platform: g.Platform, Name: "[internal] load SBOM generator " + g.Ref, Internal: true}}
	}
	mount := func(at string, in plan.Input) {
		m := plan.Mount{Type: plan.MountBind, Target: at, Source: "/", Input: -1, Readonly: true}
		if in.Step != nil {
			m.Input = len(step.Inputs)
			step.Inputs = append(step.Inputs, in)
		}
		op.Mounts = append(op.Mounts, m)
	}
	mount(core, target)
	for _, k := range slices.Sorted(maps.Keys(extras)) {
		mount(path.Join(sourceDir, "extras", coreName+"-"+k), extras[k])
	}
	return plan.Input{Step: step, Output: 1}, nil
}

// ReadBundle reads the statements that a generator left in a directory: one for
// each file, about what is exported, that of the result first. Statements that
// claim to be provenance are refused. v may be nil for an empty tree.
func ReadBundle(ctx context.Context, v *snapshot.View, dir, predicateType string) ([]attest.Attestation, error) {
	if v == nil {
		return nil, nil
	}
	dir = strings.TrimPrefix(path.Clean("/"+dir), "/")
	if dir == "" {
		dir = "."
	}
	entries, err := v.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var core, others []attest.Attestation
	for _, e := range entries {
		name := path.Base(e.Path)
		if e.Type != layers.Regular {
			return nil, fmt.Errorf("%s: not a regular file", e.Path)
		}
		s, err := readStatement(ctx, v, e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Path, err)
		}
		if strings.HasPrefix(s.PredicateType, "https://slsa.dev/provenance/") {
			return nil, fmt.Errorf("%s: nobody but the builder may tell of provenance", e.Path)
		}
		if predicateType != "" && s.PredicateType != predicateType {
			return nil, fmt.Errorf("bundle entry %s does not match required predicate type %s", s.PredicateType, predicateType)
		}
		a := attest.Attestation{File: name, PredicateType: s.PredicateType, Subjects: s.Subject, Predicate: attest.Fixed(s.Predicate)}
		if before, _, _ := strings.Cut(name, "."); before == coreName {
			core = append(core, a)
			continue
		}
		others = append(others, a)
	}
	return append(core, others...), nil
}

func readStatement(ctx context.Context, v *snapshot.View, e layers.Entry) (attest.Statement, error) {
	var s attest.Statement
	if e.Size > attest.Limit {
		return s, fmt.Errorf("larger than %d bytes", attest.Limit)
	}
	r, err := v.Open(ctx, e.Path)
	if err != nil {
		return s, err
	}
	defer r.Close()
	d := json.NewDecoder(io.LimitReader(r, attest.Limit))
	if err := d.Decode(&s); err != nil {
		return s, fmt.Errorf("not an in-toto statement: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return s, errors.New("in-toto statement is not a single JSON object")
	}
	return s, nil
}
