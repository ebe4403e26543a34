package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"
	helper "github.com/docker/docker-credential-helpers/client"
	helpercreds "github.com/docker/docker-credential-helpers/credentials"
)

// credential is what a person has stored for a registry.
type credential = types.AuthConfig

// Helpers that ask the user or a cloud may take their time.
const helperTimeout = time.Minute

// configFile is Docker's config.json. It is read once, when a registry first
// wants credentials.
type configFile struct {
	dir string
	// ask is asked instead of the file.
	ask Credentials

	mu     sync.Mutex
	loaded *configfile.ConfigFile
	cached map[string]credential
}

// get returns the credential for a key (see credentialKey); the zero one if
// there is none.
func (f *configFile) get(ctx context.Context, key string) (credential, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if cred, ok := f.cached[key]; ok {
		return cred, nil
	}
	cred, err := f.find(ctx, key)
	if err != nil {
		return credential{}, err
	}
	if f.cached == nil {
		f.cached = map[string]credential{}
	}
	f.cached[key] = cred
	return cred, nil
}

// Credentials calls fn for each password and token that Docker's config.json has
// as plain text, and for those that credential helpers have given so far, with the
// registry that it is for. Nobody is asked for any.
func (c *Client) Credentials(fn func(host, value string)) {
	f := &c.config
	f.mu.Lock()
	defer f.mu.Unlock()
	tell := func(host string, cred credential) {
		for _, v := range []string{cred.Password, cred.IdentityToken, cred.RegistryToken} {
			if v != "" {
				fn(host, v)
			}
		}
	}
	if f.ask == nil && f.load() == nil { // else whoever needs it will say so
		for host, cred := range f.loaded.AuthConfigs {
			tell(host, cred)
		}
	}
	for host, cred := range f.cached {
		tell(host, cred)
	}
}

func (f *configFile) find(ctx context.Context, key string) (credential, error) {
	if f.ask != nil {
		host := key
		if key == credentialKey("docker.io") {
			host = apiHost("docker.io")
		}
		username, secret, err := f.ask(ctx, host)
		if err != nil || username != "" {
			return credential{Username: username, Password: secret}, err
		}
		return credential{IdentityToken: secret}, nil
	}
	if err := f.load(); err != nil {
		return credential{}, err
	}
	if name := f.helper(key); name != "" {
		return askHelper(ctx, name, key)
	}
	return credentials.NewFileStore(f.loaded).Get(key)
}

func (f *configFile) load() error {
	if f.loaded != nil {
		return nil
	}
	if f.dir == "" {
		f.loaded = configfile.New("")
		return nil
	}
	loaded, err := config.Load(f.dir)
	if err != nil {
		return fmt.Errorf("docker's configuration: %w", err)
	}
	f.loaded = loaded
	return nil
}

// helper is the name of the credential helper for key, or empty.
func (f *configFile) helper(key string) string {
	if name, ok := f.loaded.CredentialHelpers[key]; ok {
		return name
	}
	if key == credentialKey("docker.io") {
		if name, ok := f.loaded.CredentialHelpers["docker.io"]; ok {
			return name
		}
	}
	return f.loaded.CredentialsStore
}

// store saves a credential as `docker login` does.
func (f *configFile) store(ctx context.Context, key string, cred credential) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loaded, f.cached = nil, nil // somebody may have changed it since
	if err := f.load(); err != nil {
		return err
	}
	if f.dir == "" {
		return errors.New("no directory for docker's configuration: set HOME or DOCKER_CONFIG")
	}
	if name := f.helper(key); name != "" {
		err := helper.Store(helperProgram(ctx, name), &helpercreds.Credentials{ServerURL: key, Username: cred.Username, Secret: cred.Password})
		if err != nil {
			return fmt.Errorf("credential helper %s: %w", name, err)
		}
		cred = credential{ServerAddress: key} // that there is one is told to docker
	}
	cred.ServerAddress = key
	f.loaded.AuthConfigs[key] = cred
	return f.loaded.Save()
}

// erase removes a credential, and reports whether there was one to be seen.
func (f *configFile) erase(ctx context.Context, key string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loaded, f.cached = nil, nil
	if err := f.load(); err != nil {
		return false, err
	}
	_, found := f.loaded.AuthConfigs[key]
	if name := f.helper(key); name != "" {
		if err := helper.Erase(helperProgram(ctx, name), key); err != nil {
			return found, fmt.Errorf("credential helper %s: %w", name, err)
		}
	}
	if !found {
		return false, nil
	}
	delete(f.loaded.AuthConfigs, key)
	return true, f.loaded.Save()
}

func askHelper(ctx context.Context, name, key string) (credential, error) {
	got, err := helper.Get(helperProgram(ctx, name), key)
	switch {
	case helpercreds.IsErrCredentialsNotFound(err):
		return credential{}, nil
	case err != nil:
		return credential{}, fmt.Errorf("credential helper %s: %w", name, err)
	case got.Username == "<token>": // Docker's convention
		return credential{IdentityToken: got.Secret}, nil
	}
	return credential{Username: got.Username, Password: got.Secret}, nil
}

// helperProgram runs docker-credential-<name>; it is killed when ctx ends.
func helperProgram(ctx context.Context, name string) helper.ProgramFunc {
	return func(args ...string) helper.Program { return &program{ctx, "docker-credential-" + name, args, nil} }
}

type program struct {
	ctx   context.Context
	name  string
	args  []string
	input io.Reader
}

func (p *program) Input(r io.Reader) { p.input = r }

func (p *program) Output() ([]byte, error) {
	if strings.ContainsAny(p.name, `/\`) {
		return nil, fmt.Errorf("%q is not the name of a program", p.name)
	}
	ctx, cancel := context.WithTimeout(p.ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.name, p.args...)
	cmd.Stdin = p.input
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && ctx.Err() != nil {
		return out, context.Cause(ctx)
	}
	if err != nil && len(out) == 0 && stderr.Len() > 0 {
		out = stderr.Bytes() // the caller puts it into its error
	}
	return out, err
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}
