package gc

import (
	"os"
	"strings"
	"time"
)

// contextCopy is contexts/<hash>/<n>: a copy of a directory of a client, which
// makes the next transfer of it short. Its lock is "context-<hash>-<n>".
type contextCopy struct {
	hash, n string
	used    time.Time
}

func (c contextCopy) id() string { return c.hash + "-" + c.n }

func (c contextCopy) entry(inUse bool) Entry {
	return Entry{ID: c.id(), Type: TypeContext, Used: c.used, InUse: inUse, Description: "copy of a client's directory"}
}

func (s *Store) contexts() (list []contextCopy, err error) {
	hashes, err := os.ReadDir(s.Root.Path("contexts"))
	if err := ignoreMissing(err); err != nil {
		return nil, err
	}
	for _, h := range hashes {
		if strings.Contains(h.Name(), "-") {
			continue
		}
		copies, err := os.ReadDir(s.Root.Path("contexts", h.Name()))
		if err != nil {
			continue
		}
		for _, c := range copies {
			if fi, err := c.Info(); err == nil && fi.IsDir() {
				list = append(list, contextCopy{hash: h.Name(), n: c.Name(), used: fi.ModTime()})
			}
		}
	}
	return list, nil
}

// contextPlace is where the context of an ID is.
func (s *Store) contextPlace(id string) string {
	hash, n, _ := strings.Cut(id, "-")
	return s.Root.Path("contexts", hash, n)
}
