package main

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/strake-build/strake/layers/image"
)

// version is the module's version, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				v += "-" + s.Value[:12]
			}
		}
	}
	return v
}

type versionOptions struct {
	format string
	json   bool
}

func newVersion(e *env) *cobra.Command {
	var o versionOptions
	cmd := &cobra.Command{
		Use:     "version [OPTIONS]",
		Short:   "Show which strake this is",
		Example: "  strake version\n  strake version --json\n  strake version --format '{{.Version}}'",
		Args:    nArgs(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runVersion(cmd.Context(), o, e) },
	}
	cmd.Flags().StringVar(&o.format, "format", "", formatHelp)
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runVersion(_ context.Context, o versionOptions, e *env) error {
	v := struct {
		Version, GoVersion, Os, Arch string
		// CompatibilityVersion: equal inputs give equal digests in all versions
		// of strake that have the same one.
		CompatibilityVersion int
	}{version(), runtime.Version(), runtime.GOOS, runtime.GOARCH, image.Compatibility}
	switch {
	case o.json && o.format != "":
		return usagef("--json and --format are two ways to print; give one")
	case o.json:
		o.format = "json"
	case o.format == "":
		return e.printf("strake %s (%s %s/%s)\n", v.Version, v.GoVersion, v.Os, v.Arch)
	}
	return printItems(e.stdout, o.format, []any{v})
}
