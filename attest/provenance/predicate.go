package provenance

import (
	"encoding/json"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The documents, in the form that BuildKit gives them: its build type defines
// the extensions, and tools read them.

// What the parameters and extensions of a predicate mean is defined there.
const (
	buildType1  = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
	buildType02 = "https://mobyproject.org/buildkit@v1"
)

type digestSet map[string]string

type resource struct {
	URI    string    `json:"uri,omitempty"`
	Digest digestSet `json:"digest,omitempty"`
}

type configSource struct {
	URI    string    `json:"uri,omitempty"`
	Digest digestSet `json:"digest,omitempty"`
	Path   string    `json:"path,omitempty"`
}

type named struct {
	Name string `json:"name"`
}

type optional struct {
	ID       string `json:"id"`
	Optional bool   `json:"optional,omitempty"`
}

type parameters struct {
	Frontend string              `json:"frontend,omitempty"`
	Args     map[string]string   `json:"args,omitempty"`
	Secrets  []optional          `json:"secrets,omitempty"`
	SSH      []optional          `json:"ssh,omitempty"`
	Locals   []named             `json:"locals,omitempty"`
	Inputs   map[string]*request `json:"inputs,omitempty"`
	Root     *request            `json:"root,omitempty"`
}

type request struct {
	ConfigSource configSource `json:"configSource"`
	Request      *parameters  `json:"request,omitempty"`
}

type buildConfig struct {
	Definition    []buildStep       `json:"llbDefinition,omitempty"`
	DigestMapping map[string]string `json:"digestMapping,omitempty"`
}

type buildkitMetadata struct {
	VCS    map[string]string                 `json:"vcs,omitempty"`
	Source *sourceMap                        `json:"source,omitempty"`
	Layers map[string][][]ocispec.Descriptor `json:"layers,omitempty"`
}

// sourceMap connects steps with the files that they come from.
type sourceMap struct {
	Locations map[string]*locations `json:"locations,omitempty"`
	Infos     []sourceInfo          `json:"infos,omitempty"`
}

type sourceInfo struct {
	Filename      string            `json:"filename,omitempty"`
	Language      string            `json:"language,omitempty"`
	Data          []byte            `json:"data,omitempty"`
	Definition    []buildStep       `json:"llbDefinition,omitempty"`
	DigestMapping map[string]string `json:"digestMapping,omitempty"`
}

type locations struct {
	Locations []location `json:"locations,omitempty"`
}

type location struct {
	SourceIndex int         `json:"sourceIndex,omitempty"`
	Ranges      []lineRange `json:"ranges,omitempty"`
}

type lineRange struct {
	Start position `json:"start"`
	End   position `json:"end"`
}

type position struct {
	Line      int `json:"line,omitempty"`
	Character int `json:"character,omitempty"`
}

// internalParameters are what the builder added; Env is flattened into them.
type internalParameters struct {
	BuildConfig       *buildConfig
	BuilderPlatform   string
	TargetPlatform    string
	DockerfileVersion string
	Env               map[string]any
}

// MarshalJSON flattens Env; our own fields win.
func (p internalParameters) MarshalJSON() ([]byte, error) {
	m := map[string]any{}
	for k, v := range p.Env {
		m[k] = v
	}
	m["builderPlatform"] = p.BuilderPlatform
	if p.BuildConfig != nil {
		m["buildConfig"] = p.BuildConfig
	}
	if p.TargetPlatform != "" {
		m["targetPlatform"] = p.TargetPlatform
	}
	if p.DockerfileVersion != "" {
		m["dockerfileVersion"] = p.DockerfileVersion
	}
	return json.Marshal(m)
}

type predicate1 struct {
	BuildDefinition buildDefinition `json:"buildDefinition"`
	RunDetails      runDetails      `json:"runDetails"`
}

type buildDefinition struct {
	BuildType          string `json:"buildType"`
	ExternalParameters struct {
		ConfigSource configSource `json:"configSource"`
		Request      parameters   `json:"request"`
	} `json:"externalParameters"`
	InternalParameters   internalParameters `json:"internalParameters"`
	ResolvedDependencies []resource         `json:"resolvedDependencies,omitempty"`
}

type runDetails struct {
	Builder struct {
		ID      string            `json:"id"`
		Version map[string]string `json:"version,omitempty"`
	} `json:"builder"`
	Metadata metadata1 `json:"metadata"`
}

type metadata1 struct {
	InvocationID     string           `json:"invocationId,omitempty"`
	StartedOn        *time.Time       `json:"startedOn,omitempty"`
	FinishedOn       *time.Time       `json:"finishedOn,omitempty"`
	BuildKitMetadata buildkitMetadata `json:"buildkit_metadata"`
	Hermetic         bool             `json:"buildkit_hermetic,omitempty"`
	Completeness     struct {
		Request              bool `json:"request"`
		ResolvedDependencies bool `json:"resolvedDependencies"`
	} `json:"buildkit_completeness"`
	Reproducible bool `json:"buildkit_reproducible,omitempty"`
}

type predicate02 struct {
	Builder struct {
		ID string `json:"id"`
	} `json:"builder"`
	BuildType   string       `json:"buildType"`
	Materials   []resource   `json:"materials,omitempty"`
	Invocation  invocation02 `json:"invocation"`
	BuildConfig *buildConfig `json:"buildConfig,omitempty"`
	Metadata    metadata02   `json:"metadata"`
}

type invocation02 struct {
	ConfigSource struct {
		URI        string    `json:"uri,omitempty"`
		Digest     digestSet `json:"digest,omitempty"`
		EntryPoint string    `json:"entryPoint,omitempty"`
	} `json:"configSource"`
	Parameters  parameters     `json:"parameters"`
	Environment map[string]any `json:"environment"`
}

type metadata02 struct {
	BuildInvocationID string     `json:"buildInvocationID,omitempty"`
	BuildStartedOn    *time.Time `json:"buildStartedOn,omitempty"`
	BuildFinishedOn   *time.Time `json:"buildFinishedOn,omitempty"`
	Completeness      struct {
		Parameters  bool `json:"parameters"`
		Environment bool `json:"environment"`
		Materials   bool `json:"materials"`
	} `json:"completeness"`
	Reproducible     bool             `json:"reproducible"`
	BuildKitMetadata buildkitMetadata `json:"https://mobyproject.org/buildkit@v1#metadata"`
	Hermetic         bool             `json:"https://mobyproject.org/buildkit@v1#hermetic,omitempty"`
}

// v02 is the predicate in the form of SLSA v0.2.
func (p *predicate1) v02() *predicate02 {
	out := &predicate02{BuildType: buildType02, Materials: p.BuildDefinition.ResolvedDependencies, BuildConfig: p.BuildDefinition.InternalParameters.BuildConfig}
	out.Builder.ID = p.RunDetails.Builder.ID
	src := p.BuildDefinition.ExternalParameters.ConfigSource
	out.Invocation.ConfigSource.URI, out.Invocation.ConfigSource.Digest, out.Invocation.ConfigSource.EntryPoint = src.URI, src.Digest, src.Path
	out.Invocation.Parameters = p.BuildDefinition.ExternalParameters.Request
	internal := p.BuildDefinition.InternalParameters
	env := map[string]any{}
	for k, v := range internal.Env {
		env[k] = v
	}
	env["platform"] = internal.BuilderPlatform
	if internal.DockerfileVersion != "" {
		env["dockerfileVersion"] = internal.DockerfileVersion
	}
	out.Invocation.Environment = env
	m := p.RunDetails.Metadata
	out.Metadata = metadata02{
		BuildInvocationID: m.InvocationID, BuildStartedOn: m.StartedOn, BuildFinishedOn: m.FinishedOn,
		Reproducible: m.Reproducible, BuildKitMetadata: m.BuildKitMetadata, Hermetic: m.Hermetic,
	}
	out.Metadata.Completeness.Parameters = m.Completeness.Request
	out.Metadata.Completeness.Environment = true
	out.Metadata.Completeness.Materials = m.Completeness.ResolvedDependencies
	return out
}
