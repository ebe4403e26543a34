package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/strake-build/strake/daemon"
)

// daemonConfig is what strake serve knows of buildkitd's configuration file.
// Other settings are those of a daemon that works differently, and passed over.
type daemonConfig struct {
	Entitlements  []string `toml:"insecure-entitlements"`
	ProvenanceEnv string   `toml:"provenanceEnvDir"`
	GRPC          struct {
		TLS struct {
			Cert string `toml:"cert"`
			Key  string `toml:"key"`
			CA   string `toml:"ca"`
		} `toml:"tls"`
	} `toml:"grpc"`
	CDI struct {
		Dirs []string `toml:"specDirs"`
	} `toml:"cdi"`
	Registry map[string]struct {
		Mirrors  []string `toml:"mirrors"`
		HTTP     bool     `toml:"http"`
		Insecure bool     `toml:"insecure"`
	} `toml:"registry"`
}

// maxConfig bounds the file.
const maxConfig = 1 << 20

// readConfig reads the configuration file into the options; flags go before it.
func (o *serveOptions) readConfig() error {
	if o.config == "" {
		return nil
	}
	data, err := readFile(o.config, maxConfig)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	var c daemonConfig
	if err := toml.Unmarshal(data, &c); err != nil {
		return usagef("--config %s: %w", o.config, err)
	}
	o.allow = append(o.allow, c.Entitlements...)
	if len(o.cdiDirs) == 0 {
		o.cdiDirs = c.CDI.Dirs
	}
	if c.ProvenanceEnv != "" {
		if o.provenanceEnv, err = readProvenanceEnv(c.ProvenanceEnv); err != nil {
			return usagef("--config %s: provenanceEnvDir: %w", o.config, err)
		}
	}
	t := c.GRPC.TLS
	o.tls = daemon.TLSFiles{CA: cmp.Or(o.tls.CA, t.CA), Cert: cmp.Or(o.tls.Cert, t.Cert), Key: cmp.Or(o.tls.Key, t.Key)}
	for host, r := range c.Registry {
		for _, m := range r.Mirrors {
			pair := host + "=" + m
			if !strings.Contains(strings.Join(o.mirrors, "\n")+"\n", pair+"\n") {
				o.mirrors = append(o.mirrors, pair)
			}
		}
		if r.HTTP || r.Insecure {
			o.insecure = append(o.insecure, host)
		}
	}
	return nil
}

// readProvenanceEnv reads what an administrator adds to provenance: the objects
// in the JSON files of a directory, as one. Later files win.
func readProvenanceEnv(dir string) (map[string]any, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" {
			continue
		}
		data, err := readFile(filepath.Join(dir, e.Name()), maxConfig)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, &out); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
	}
	return out, nil
}

func readFile(name string, limit int64) ([]byte, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if fi.Size() > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, limit)
	}
	return os.ReadFile(name)
}
