package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/tonistiigi/go-csvvalue"

	"github.com/strake-build/strake/plan"
)

// maxSecret is how large a secret may be, as in BuildKit.
const maxSecret = 500 << 10

// parseSecrets parses --secret flags. The values are read once, when somebody
// first wants them.
func parseSecrets(values []string, e *env) (get func(context.Context, string) ([]byte, error), ids []string, err error) {
	type place struct{ file, env string }
	secrets := map[string]place{}
	for _, v := range values {
		fields, err := csvvalue.Fields(v, nil)
		if err != nil {
			return nil, nil, usagef("--secret %s: %w", v, err)
		}
		var id, typ string
		var p place
		for _, f := range fields {
			key, value, ok := strings.Cut(f, "=")
			if !ok {
				return nil, nil, usagef("--secret %s: %q is not of the form key=value", v, f)
			}
			switch strings.ToLower(key) {
			case "id":
				id = value
			case "type":
				typ = value
			case "src", "source":
				p.file = value
			case "env":
				p.env = value
			default:
				return nil, nil, usagef("--secret %s: %s is not one of id, src, env, type", v, key)
			}
		}
		switch {
		case id == "":
			return nil, nil, usagef("--secret %s: id= is missing", v)
		case typ != "" && typ != "file" && typ != "env":
			return nil, nil, usagef("--secret %s: type is file or env", v)
		case p.file != "" && p.env != "":
			return nil, nil, usagef("--secret %s: src and env are both given", v)
		case typ == "env" && p.env == "":
			// "type=env,src=NAME" is the other way to say it, and the ID the
			// name where there is no other.
			p.env, p.file = p.file, ""
			if p.env == "" {
				p.env = id
			}
		case typ == "" && p.file == "" && p.env == "":
			if _, ok := e.lookup(id); ok {
				p.env = id
			} else {
				p.file = id
			}
		case p.file == "" && p.env == "":
			p.file = id
		}
		if p.file != "" {
			if _, err := os.Stat(p.file); err != nil {
				return nil, nil, fmt.Errorf("--secret %s: %w", v, err)
			}
		}
		if _, again := secrets[id]; !again {
			ids = append(ids, id)
		}
		secrets[id] = p
	}
	var mu sync.Mutex
	read := map[string][]byte{}
	return func(_ context.Context, id string) ([]byte, error) {
		p, ok := secrets[id]
		if !ok {
			return nil, &missingSecret{id}
		}
		if p.env != "" {
			return []byte(e.getenv(p.env)), nil
		}
		mu.Lock()
		defer mu.Unlock()
		if data, ok := read[id]; ok {
			return data, nil
		}
		f, err := os.Open(p.file)
		if err != nil {
			return nil, fmt.Errorf("secret %q: %w", id, err)
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
		if err != nil {
			return nil, fmt.Errorf("secret %q: %w", id, err)
		}
		if len(data) > maxSecret {
			return nil, fmt.Errorf("secret %q: larger than %d KiB", id, maxSecret>>10)
		}
		read[id] = data // it may be a pipe
		return data, nil
	}, ids, nil
}

// missingSecret is an fs.ErrNotExist.
type missingSecret struct{ id string }

func (m *missingSecret) Error() string {
	return fmt.Sprintf("secret %q was not given: add --secret id=%s,src=FILE", m.id, m.id)
}

func (m *missingSecret) Is(target error) bool { return target == fs.ErrNotExist }

// parseSSH parses --ssh flags: IDs of agents and their sockets.
func parseSSH(values []string, e *env) (func(plan.Mount) (string, error), error) {
	agents := map[string]string{}
	for _, v := range values {
		id, socket, _ := strings.Cut(v, "=")
		if id == "" {
			return nil, usagef("--ssh %s: it is of the form ID or ID=SOCKET", v)
		}
		if socket == "" {
			if socket = e.getenv("SSH_AUTH_SOCK"); socket == "" {
				return nil, usagef("--ssh %s: SSH_AUTH_SOCK is not set: start an agent, or name its socket", v)
			}
		}
		fi, err := os.Stat(socket)
		if err != nil {
			return nil, fmt.Errorf("--ssh %s: %w", v, err)
		}
		if fi.Mode().Type() != os.ModeSocket {
			return nil, usagef("--ssh %s: %s is not the socket of an agent; keys are not read: add them to an agent with ssh-add", v, socket)
		}
		agents[id] = socket
	}
	return func(m plan.Mount) (string, error) {
		id := m.ID
		if id == "" {
			id = "default"
		}
		if s, ok := agents[id]; ok {
			return s, nil
		}
		return "", fmt.Errorf("no SSH agent %q was given: add --ssh %s", id, id)
	}, nil
}
