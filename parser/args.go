package parser

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// epochArg is the build arg that sets all times of an image.
const epochArg = "SOURCE_DATE_EPOCH"

// silentArgs steer BuildKit and are no variables of a stage.
var silentArgs = map[string]bool{
	scanContext: true,
	scanStage:   true,
}

// openArgs sets the global arguments, which FROM sees: those of the platforms,
// then those declared before the first FROM.
func (t *target) openArgs(ctx context.Context) error {
	target := t.o.Target
	if target == "" {
		target = t.syntax.stages[len(t.syntax.stages)-1].Name
	}
	if target == "" {
		target = "default"
	}
	bp, tp := platforms.Normalize(t.o.BuildPlatform), t.platform
	base := newEnv()
	for _, kv := range [][2]string{
		{"BUILDPLATFORM", platforms.Format(bp)},
		{"BUILDOS", bp.OS},
		{"BUILDOSVERSION", bp.OSVersion},
		{"BUILDARCH", bp.Architecture},
		{"BUILDVARIANT", bp.Variant},
		{"TARGETPLATFORM", platforms.FormatAll(tp)},
		{"TARGETOS", tp.OS},
		{"TARGETOSVERSION", tp.OSVersion},
		{"TARGETARCH", tp.Architecture},
		{"TARGETVARIANT", tp.Variant},
		{"TARGETSTAGE", target},
	} {
		if v, ok := t.args[kv[0]]; ok {
			kv[1] = v
		}
		base.set(kv[0], kv[1])
	}
	t.lintDefaultBases(base)

	t.globals = base.clone()
	if err := t.globalArgs(t.globals, t.args, t.declareGlobal); err != nil {
		return err
	}
	return t.openEpoch(ctx)
}

// globalArgs adds the arguments declared before the first FROM to env, and tells
// declare, unless that is nil, their values and the arguments used in them.
func (t *target) globalArgs(e *env, given map[string]string, declare func(*instructions.ArgCommand, instructions.KeyValuePairOptional, string, map[string]struct{})) error {
	for _, c := range t.syntax.args {
		for _, arg := range c.Args {
			value, ok := given[arg.Key]
			var uses map[string]struct{}
			if !ok && arg.Value != nil {
				res, err := t.expander.word(*arg.Value, e)
				if err != nil {
					return t.file.at(c.Location(), err)
				}
				value, ok, uses = res.Result, true, res.Matched
			}
			if ok {
				e.set(arg.Key, value)
			}
			if declare != nil {
				declare(&c, arg, value, uses)
			}
		}
	}
	return nil
}

// openEpoch reads SOURCE_DATE_EPOCH from the build args or the global ones.
func (t *target) openEpoch(ctx context.Context) (err error) {
	if value, given := t.args[epochArg]; given {
		t.epoch, err = t.readEpoch(ctx, value)
		return err
	}
	value, _ := t.globals.Get(epochArg)
	if t.epoch, err = t.readEpoch(ctx, value); err == nil {
		return nil
	}
	for _, c := range t.syntax.args {
		for _, arg := range c.Args {
			if arg.Key == epochArg {
				err = t.file.at(c.Location(), err)
			}
		}
	}
	return err
}

// readEpoch reads a value of SOURCE_DATE_EPOCH; nil if it is empty.
func (t *target) readEpoch(ctx context.Context, value string) (*time.Time, error) {
	if value == "" {
		return nil, nil
	}
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return t.epochOf(ctx, value)
	}
	epoch := time.Unix(seconds, 0).UTC()
	if y := epoch.Year(); y < 0 || y > 9999 {
		return nil, fmt.Errorf("invalid %s: %s is no time of this age", epochArg, value) // and JSON can't tell it
	}
	return &epoch, nil
}

// proxyEnv returns the proxy variables that build args set, as processes want
// them: in upper and lower case.
func proxyEnv(args map[string]string) []string {
	values := map[string]string{}
	names := make([]string, 0, len(args))
	for name := range args {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		values[strings.ToUpper(name)] = args[name]
	}
	var out []string
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"} {
		if v := values[name]; v != "" {
			out = append(out, name+"="+v, strings.ToLower(name)+"="+v)
		}
	}
	return out
}

// arg is the ARG instruction in a stage.
func (s *stage) arg(c *instructions.ArgCommand) error {
	texts := make([]string, 0, len(c.Args))
	for _, arg := range c.Args {
		s.lintSecret("ARG", arg.Key, c)
		inherited := false
		if v, ok := s.t.args[arg.Key]; ok {
			if arg.Key == epochArg {
				v = s.t.epochValue()
			}
			arg.Value = &v
		} else if arg.Value != nil {
			v, err := s.expand(c, *arg.Value)
			if err != nil {
				return err
			}
			arg.Value = &v
		} else if v, ok := s.t.globals.Get(arg.Key); ok {
			inherited = true
			if arg.Key == epochArg {
				v = s.t.epochValue()
			}
			arg.Value = &v
		}
		text := arg.Key
		if arg.Value != nil {
			text += "=" + *arg.Value
			if !silentArgs[arg.Key] {
				s.env.set(arg.Key, *arg.Value)
			}
		}
		if inherited {
			s.needs.inherited = append(s.needs.inherited, arg.Key)
		} else {
			s.needs.args = append(s.needs.args, Arg{
				Name: arg.Key, Description: arg.DocComment, Value: arg.ValueString(), Source: s.t.file.sourceAt(c.Location()),
			})
		}
		s.args = append(s.args, arg)
		s.argTexts = nil
		texts = append(texts, text)
	}
	return s.record("ARG "+strings.Join(texts, " "), false)
}

// epochValue is the epoch as a build arg has it, normalised.
func (t *target) epochValue() string {
	if t.epoch == nil {
		return ""
	}
	return strconv.FormatInt(t.epoch.Unix(), 10)
}

// buildArgs returns the arguments declared so far as NAME=value, each once,
// with the values that a RUN sees. The slice is shared.
func (s *stage) buildArgs() []string {
	if s.argTexts == nil {
		index := map[string]int{}
		s.argTexts = []string{}
		for _, arg := range s.args {
			v, ok := s.env.Get(arg.Key)
			if !ok {
				v = arg.ValueString()
			}
			text := arg.Key + "=" + v
			if i, ok := index[arg.Key]; ok {
				s.argTexts[i] = text
				continue
			}
			index[arg.Key] = len(s.argTexts)
			s.argTexts = append(s.argTexts, text)
		}
	}
	return s.argTexts
}

var _ shell.EnvGetter = (*env)(nil)
