package parser

import (
	"maps"
	"slices"
	"strings"
)

// env holds the variables that an instruction sees. The order is that of the
// last assignment, which is how BuildKit hands them to processes.
type env struct {
	values map[string]string
	keys   []string
	bytes  int      // length of all names and values
	list   []string // NAME=value; nil until it is asked for, never changed
}

func newEnv() *env { return &env{values: map[string]string{}} }

// Get and Keys make env a shell.EnvGetter.
func (e *env) Get(key string) (string, bool) {
	v, ok := e.values[key]
	return v, ok
}

func (e *env) Keys() []string { return e.keys }

func (e *env) set(key, value string) {
	if old, ok := e.values[key]; ok {
		if old == value && e.keys[len(e.keys)-1] == key {
			return
		}
		i := slices.Index(e.keys, key)
		e.keys = slices.Delete(e.keys, i, i+1)
		e.bytes -= len(key) + len(old)
	}
	e.bytes += len(key) + len(value)
	e.values[key] = value
	e.keys = append(e.keys, key)
	e.list = nil
}

func (e *env) clone() *env {
	return &env{values: maps.Clone(e.values), keys: slices.Clone(e.keys), bytes: e.bytes, list: e.list}
}

// size is roughly what a copy takes, in bytes.
func (e *env) size() int { return 200 * len(e.keys) }

// environ returns the variables as NAME=value. The slice is shared.
func (e *env) environ() []string {
	if e.list == nil {
		e.list = make([]string, len(e.keys))
		for i, k := range e.keys {
			e.list[i] = k + "=" + e.values[k]
		}
	}
	return e.list
}

// masked is an env with some values hidden, for texts that people see.
type masked struct {
	*env
	hidden map[string]bool
}

func (m masked) Get(key string) (string, bool) {
	if m.hidden[key] {
		return "****", true
	}
	return m.env.Get(key)
}

// noEnv is an environment without variables.
type noEnv struct{}

func (noEnv) Get(string) (string, bool) { return "", false }
func (noEnv) Keys() []string            { return nil }

// configEnv is the Env of an image configuration: order of the first
// assignment, entries that are no assignment kept as they are.
type configEnv struct {
	list  []string
	index map[string]int // first entry of a name
}

func newConfigEnv(list []string) *configEnv {
	c := &configEnv{list: slices.Clone(list), index: make(map[string]int, len(list))}
	for i, e := range c.list {
		k, _, _ := strings.Cut(e, "=")
		if _, ok := c.index[k]; !ok {
			c.index[k] = i
		}
	}
	return c
}

func (c *configEnv) set(key, value string) {
	if i, ok := c.index[key]; ok {
		c.list[i] = key + "=" + value
		return
	}
	c.index[key] = len(c.list)
	c.list = append(c.list, key+"="+value)
}

func (c *configEnv) has(key string) bool {
	_, ok := c.index[key]
	return ok
}

func (c *configEnv) clone() *configEnv {
	return &configEnv{list: slices.Clone(c.list), index: maps.Clone(c.index)}
}
