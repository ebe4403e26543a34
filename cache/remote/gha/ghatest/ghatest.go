// Package ghatest is a stand-in for the cache service of GitHub Actions: its
// three calls, and as much of Azure's blob storage as its addresses are for, or
// Azurite, which is a real one.
package ghatest

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Token is the one that the service wants.
const Token = "runtime-token"

// Service answers the calls.
type Service struct {
	// Dir has what was written, files named by the digests of their contents,
	// or what Azurite makes of it.
	Dir string

	azure   *azurite // nil: the storage is our own
	mu      sync.Mutex
	entries []*entry
	uploads map[string]map[string][]byte // blocks, by entry and ID
}

type entry struct {
	key, version string
	done         bool
	digest       string
}

// Start returns a service with its blobs in the empty directory dir.
func Start(dir string) (s *Service, stop func() error, err error) {
	s, stop = &Service{Dir: dir}, func() error { return nil }
	if program := os.Getenv(Variable); program != "" {
		s.azure, stop, err = startAzurite(program, dir)
	}
	return s, stop, err
}

// ServeHTTP implements [http.Handler].
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name, ok := strings.CutPrefix(r.URL.Path, "/storage/blobs/"); ok {
		s.storage(w, r, name)
		return
	}
	method, ok := strings.CutPrefix(r.URL.Path, "/twirp/github.actions.results.api.v1.CacheService/")
	if !ok || r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+Token {
		http.Error(w, `{"code":"unauthenticated","msg":"bad token"}`, http.StatusUnauthorized)
		return
	}
	var in struct {
		Key         string   `json:"key"`
		Version     string   `json:"version"`
		RestoreKeys []string `json:"restore_keys"`
		Size        string   `json:"size_bytes"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Key == "" || len(in.Key) > 512 || in.Version == "" {
		http.Error(w, `{"code":"malformed","msg":"bad request"}`, http.StatusBadRequest)
		return
	}
	answer := func(v map[string]any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	address := func(n int) string {
		if s.azure != nil {
			return s.azure.address(fmt.Sprint(n))
		}
		return fmt.Sprintf("http://%s/storage/blobs/%d?sig=secret", r.Host, n)
	}
	switch method {
	case "CreateCacheEntry":
		for _, e := range s.entries {
			if e.key == in.Key && e.version == in.Version {
				http.Error(w, `{"code":"already_exists","msg":"cache entry with the same key, version, and scope already exists"}`, http.StatusConflict)
				return
			}
		}
		s.entries = append(s.entries, &entry{key: in.Key, version: in.Version})
		answer(map[string]any{"ok": true, "signed_upload_url": address(len(s.entries) - 1)})
	case "FinalizeCacheEntryUpload":
		for i, e := range s.entries {
			if e.key != in.Key || e.version != in.Version {
				continue
			}
			if size := s.size(i); size >= 0 {
				if fmt.Sprint(size) != in.Size {
					http.Error(w, `{"code":"invalid_argument","msg":"size"}`, http.StatusBadRequest)
					return
				}
				e.done = true
				answer(map[string]any{"ok": true, "entry_id": "1"})
				return
			}
		}
		http.Error(w, `{"code":"not_found","msg":"no such upload"}`, http.StatusNotFound)
	case "GetCacheEntryDownloadURL":
		for i := len(s.entries) - 1; i >= 0; i-- { // the newest first
			e := s.entries[i]
			for _, k := range append([]string{in.Key}, in.RestoreKeys...) {
				if e.done && e.version == in.Version && strings.HasPrefix(e.key, k) {
					answer(map[string]any{"ok": true, "signed_download_url": address(i), "matched_key": e.key})
					return
				}
			}
		}
		answer(map[string]any{"ok": false})
	default:
		http.NotFound(w, r)
	}
}

// size is the size of what was written for an entry; -1 if nothing was.
func (s *Service) size(n int) int64 {
	if s.azure != nil {
		return s.azure.size(fmt.Sprint(n))
	}
	e := s.entries[n]
	if e.digest == "" {
		return -1
	}
	fi, err := os.Stat(s.file(e))
	if err != nil {
		return -1
	}
	return fi.Size()
}

func (s *Service) file(e *entry) string { return filepath.Join(s.Dir, e.digest) }

// storage is Azure's part.
func (s *Service) storage(w http.ResponseWriter, r *http.Request, name string) {
	n := -1
	_, _ = fmt.Sscan(name, &n)
	if n < 0 || n >= len(s.entries) || r.URL.Query().Get("sig") != "secret" || r.Header.Get("Authorization") != "" {
		http.Error(w, "", http.StatusForbidden)
		return
	}
	e := s.entries[n]
	if r.Method == http.MethodGet {
		http.ServeFile(w, r, s.file(e))
		return
	}
	data, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	switch comp := r.URL.Query().Get("comp"); {
	case comp == "block":
		if s.uploads == nil {
			s.uploads = map[string]map[string][]byte{}
		}
		if s.uploads[name] == nil {
			s.uploads[name] = map[string][]byte{}
		}
		s.uploads[name][r.URL.Query().Get("blockid")] = data
		w.WriteHeader(http.StatusCreated)
		return
	case comp == "blocklist":
		var list struct {
			Latest []string `xml:"Latest"`
		}
		if err := xml.Unmarshal(data, &list); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		data = nil
		for _, id := range list.Latest {
			b, ok := s.uploads[name][id]
			if !ok {
				http.Error(w, "InvalidBlockList", http.StatusBadRequest)
				return
			}
			data = append(data, b...)
		}
		delete(s.uploads, name)
	case r.Header.Get("x-ms-blob-type") != "BlockBlob":
		http.Error(w, "MissingRequiredHeader", http.StatusBadRequest)
		return
	}
	e.digest = digest.FromBytes(data).Encoded()
	if err := os.WriteFile(s.file(e), data, 0o644); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated)
}
