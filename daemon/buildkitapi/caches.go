package buildkitapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/connect"
	"github.com/strake-build/strake/progress"
)

// openCaches opens the remote caches that the client names. As in BuildKit,
// attributes that mean nothing are passed over.
func (j *job) openCaches() error {
	j.caches = &connect.Caches{}
	if j.store.Caches == nil {
		return nil
	}
	imports, err := j.cacheImports()
	if err != nil {
		return err
	}
	var from, to []remote.Spec
	for _, e := range imports {
		from = append(from, remote.Spec{Type: e.GetType(), Attrs: e.GetAttrs()})
	}
	for _, e := range j.cacheExports() {
		attrs := map[string]string{"compat": "true"} // what clients look for
		for k, v := range e.GetAttrs() {
			if k != "oci-mediatypes" && k != "image-manifest" {
				attrs[k] = v
			}
		}
		to = append(to, remote.Spec{Type: e.GetType(), Attrs: attrs})
	}
	j.store.Caches.Local = j.clientCache
	s := connect.Store{Layers: j.store.Builder.Layers, Packer: j.store.Packer, Guard: j.guard}
	j.caches, err = j.store.Caches.Open(j.ctx, j.importable(from), to, s, j.warn, j.board.event)
	if err != nil {
		j.caches = &connect.Caches{}
		return err
	}
	j.request.CacheFrom, j.request.CacheTo = j.caches.From, j.caches.To
	j.request.BuildKitFrom, j.request.BuildKitTo = j.caches.BuildKitFrom, j.caches.BuildKitTo
	return nil
}

// importable opens the directories of the client among the caches to read. One
// that can't be read is passed over, like any other cache.
func (j *job) importable(specs []remote.Spec) (kept []remote.Spec) {
	for _, s := range specs {
		if s.Type == remote.TypeLocal {
			if _, err := j.clientCache(s); err != nil {
				j.warn(fmt.Errorf("cache %s is not used: %w", s, err))
				continue
			}
		}
		kept = append(kept, s)
	}
	return kept
}

// warn tells the client of something that is no failure.
func (j *job) warn(err error) {
	j.board.event(progress.Event{Time: time.Now(), Kind: progress.Warning, Text: err.Error()})
}

func (j *job) cacheExports() []*controlapi.CacheOptionsEntry {
	c := j.req.GetCache()
	list := c.GetExports()
	if ref := c.GetExportRefDeprecated(); ref != "" {
		attrs := map[string]string{"ref": ref}
		for k, v := range c.GetExportAttrsDeprecated() {
			attrs[k] = v
		}
		list = append(list[:len(list):len(list)], &controlapi.CacheOptionsEntry{Type: remote.TypeRegistry, Attrs: attrs})
	}
	return list
}

// cacheImports are those of the request and of the attributes of its frontend.
func (j *job) cacheImports() ([]*controlapi.CacheOptionsEntry, error) {
	c := j.req.GetCache()
	list := c.GetImports()
	refs := c.GetImportRefsDeprecated()
	for ref := range strings.SplitSeq(j.req.GetFrontendAttrs()["cache-from"], ",") {
		if ref = strings.TrimSpace(ref); ref != "" {
			refs = append(refs[:len(refs):len(refs)], ref)
		}
	}
	for _, ref := range refs {
		list = append(list[:len(list):len(list)], &controlapi.CacheOptionsEntry{Type: remote.TypeRegistry, Attrs: map[string]string{"ref": ref}})
	}
	if s := j.req.GetFrontendAttrs()["cache-imports"]; s != "" {
		var more []*controlapi.CacheOptionsEntry
		if err := json.Unmarshal([]byte(s), &more); err != nil {
			return nil, fmt.Errorf("failed to unmarshal cache-imports (%q): %w", s, err)
		}
		list = append(list[:len(list):len(list)], more...)
	}
	seen := map[string]bool{}
	var once []*controlapi.CacheOptionsEntry
	for _, e := range list {
		key, err := json.Marshal([]any{e.GetType(), e.GetAttrs()})
		if err != nil {
			return nil, err
		}
		if !seen[string(key)] {
			seen[string(key)] = true
			once = append(once, e)
		}
	}
	return once, nil
}

// again reports whether what failed will succeed when it is tried again, as a
// cache does not have what it should.
func (j *job) again(err error) bool {
	j.mu.Lock()
	again := j.ctx.Err() == nil && j.store.Builder.Again(&j.request, err)
	refs := slices.Collect(maps.Values(j.refs))
	j.mu.Unlock()
	if again {
		for _, r := range refs {
			r.forget()
		}
	}
	return again
}

// builderRequest is what all runs of the job have in common.
func (j *job) builderRequest() builder.Request {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.request
}

// forget has a reference evaluated again.
func (r *reference) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done, r.err = false, nil
}
