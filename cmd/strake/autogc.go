package main

import (
	"context"
	"strings"
	"time"

	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state/gc"
)

// gcVariable configures the pruning that follows builds.
const gcVariable = "STRAKE_GC"

// autoGC prunes after a build, if $STRAKE_GC says how: the names are those of
// the flags of prune, as "max-used-space=20GB,keep-duration=48h". A build does
// not fail for it.
func (s *store) autoGC(ctx context.Context, e *env) {
	text := e.getenv(gcVariable)
	if text == "" {
		return
	}
	o, err := parseGC(text)
	if err != nil {
		e.warnf("%s: %v; nothing is pruned", gcVariable, err)
		return
	}
	keeper, err := s.gc(e)
	if err != nil {
		e.warnf("prune: %v", err)
		return
	}
	removed, err := keeper.Auto(ctx, o)
	if err != nil {
		e.warnf("prune: %v", err)
	}
	var total int64
	for _, en := range removed {
		total += en.Size
	}
	if total > 0 && e.printed {
		e.notef("pruned %s of build cache, as %s asks for", progress.Bytes(total), gcVariable)
	}
}

// parseGC parses the value of $STRAKE_GC.
func parseGC(text string) (gc.Options, error) {
	var p pruneOptions
	for pair := range strings.SplitSeq(text, ",") {
		name, value, err := splitPair("", strings.TrimSpace(pair))
		if err != nil {
			return gc.Options{}, usagef("%q: it is of the form max-used-space=20GB,keep-duration=48h", pair)
		}
		switch name {
		case "reserved-space":
			p.reserved = value
		case "max-used-space":
			p.maxUsed = value
		case "min-free-space":
			p.minFree = value
		case "keep-duration":
			if p.keepDuration, err = time.ParseDuration(value); err != nil {
				return gc.Options{}, usagef("keep-duration=%s: it is a duration, as 48h", value)
			}
		default:
			return gc.Options{}, usagef("%q: it is reserved-space, max-used-space, min-free-space or keep-duration", name)
		}
	}
	return p.request()
}
