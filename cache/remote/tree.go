package remote

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
)

// TreeID returns what a result is known by in memos.
func TreeID(rec cache.Record, output int) string {
	if output < len(rec.Trees) && rec.Trees[output] != "" {
		return rec.Trees[output]
	}
	if output >= len(rec.Outputs) {
		return ""
	}
	return LayersID(rec.Outputs[output])
}

// LayersID is what a tree is known by in memos where no cache says otherwise: IDs
// of layers are unique.
func LayersID(t layers.Tree) string {
	h := sha256.New()
	for _, id := range t {
		h.Write(strconv.AppendInt(nil, int64(len(id)), 10))
		h.Write([]byte(":" + id))
	}
	return hex.EncodeToString(h.Sum(nil))
}
