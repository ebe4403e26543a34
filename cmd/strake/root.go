package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// run runs the command that args name and returns its exit code, with which the
// process ends.
func run(args []string, e *env) int {
	ctx, sig, ready := withSignals(context.Background())
	root := newRoot(e, sig)
	ready()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && ctx.Err() != nil {
		// What fails after a signal fails because of it, unless a process
		// answered it with an exit code.
		var exit exitError
		if !errors.As(err, &exit) || exit.err != nil {
			err = context.Cause(ctx)
		}
	}
	return e.report(cmd.CommandPath(), err)
}

func newRoot(e *env, sig *signals) *cobra.Command {
	root := &cobra.Command{
		Use:           "strake",
		Short:         "Build container images from Dockerfiles",
		Long:          "Build container images from Dockerfiles, and pull, push, run and keep them: one program, no daemon, as root or not.",
		Example:       "  strake build -t app .\n  strake run --rm app",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			msg := fmt.Sprintf("%q is not a strake command", args[0])
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				msg += fmt.Sprintf(" (did you mean %q?)", s[0])
			}
			return usagef("%s", msg)
		},
		CompletionOptions:          cobra.CompletionOptions{DisableDefaultCmd: true},
		SuggestionsMinimumDistance: 2,
		Version:                    version(),
	}
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetVersionTemplate("strake {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{refine(cmd, err)} })
	root.PersistentFlags().StringVar(&e.root, "root", "", "directory of the store (default $STRAKE_ROOT, or /var/lib/strake for root and ~/.local/share/strake for others)")
	root.PersistentFlags().BoolVarP(&e.debug, "debug", "D", false, "print the whole chain of an error, for reports of bugs")
	root.AddGroup(
		&cobra.Group{ID: "build", Title: "Build and run:"},
		&cobra.Group{ID: "image", Title: "Images:"},
		&cobra.Group{ID: "registry", Title: "Registries:"},
		&cobra.Group{ID: "store", Title: "The store:"},
		&cobra.Group{ID: "other", Title: "More:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			c.DisableFlagsInUseLine = true
			root.AddCommand(c)
		}
	}
	add("build", newBuild(e), newLock(e), newWhy(e), newContext(e), newGraph(e), newRun(e, sig), newServe(e))
	add("image", newImages(e), newTag(e), newRmi(e), newInspect(e), newHistory(e), newSave(e), newLoad(e))
	add("registry", newPull(e), newPush(e), newLogin(e), newLogout(e))
	add("store", newDu(e), newPrune(e), newCheck(e), newRepair(e))
	add("other", newDoctor(e), newVersion(e), newCompletion(e))
	root.SetHelpCommandGroupID("other")
	root.AddCommand(exitCodesTopic())
	return root
}

// refine explains flags that Docker has and strake does not.
func refine(cmd *cobra.Command, err error) error {
	var other fixedFlagError
	if errors.As(err, &other) {
		return other
	}
	name, ok := strings.CutPrefix(err.Error(), "unknown flag: --")
	if short, isShort := strings.CutPrefix(err.Error(), "unknown shorthand flag: '"); isShort {
		name, ok = dockerShorthands[cmd.Name()+" -"+short[:1]], true
	}
	if !ok || name == "" {
		return err
	}
	if why := dockerFlags[cmd.Name()][name]; why != "" {
		return fmt.Errorf("--%s is not supported: %s", name, why)
	}
	if near := nearFlag(cmd, name); near != "" {
		return fmt.Errorf("%w (did you mean --%s?)", err, near)
	}
	return err
}

// nearFlag is the name of the command's flag that is most like name; empty if
// none is within two edits.
func nearFlag(cmd *cobra.Command, name string) string {
	near, least := "", 3
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if d := levenshtein.Distance(name, f.Name, nil); !f.Hidden && d < least && d < len(f.Name) {
			near, least = f.Name, d
		}
	})
	return near
}

// fixedFlag is a flag of docker's that has one value here: what strake does
// anyway. Asking for that is fine, asking for anything else is an error.
type fixedFlag struct {
	name  string
	value bool
	why   string
}

// fixedFlagError is the error of asking for the other value.
type fixedFlagError struct{ flag fixedFlag }

func (e fixedFlagError) Error() string {
	return fmt.Sprintf("--%s is not supported: %s", e.flag.name, e.flag.why)
}

// Set implements [pflag.Value].
func (f fixedFlag) Set(s string) error {
	if v, err := strconv.ParseBool(s); err != nil || v != f.value {
		return fixedFlagError{f}
	}
	return nil
}

// Type implements [pflag.Value].
func (f fixedFlag) Type() string { return "bool" }

// String implements [pflag.Value].
func (f fixedFlag) String() string { return strconv.FormatBool(f.value) }

// addFixed adds hidden flags that have one value.
func addFixed(f *pflag.FlagSet, flags ...fixedFlag) {
	for _, x := range flags {
		flag := f.VarPF(x, x.name, "", x.why)
		flag.NoOptDefVal, flag.Hidden = "true", true
	}
}

// dockerFlags says what to do instead of flags that docker's command of the
// same name has.
var dockerFlags = map[string]map[string]string{
	"build": {
		"attest":       "strake writes no attestations yet",
		"builder":      "there is no builder to choose, strake builds itself",
		"compress":     "the build context goes nowhere that it should be compressed for",
		"isolation":    "it is for Windows",
		"security-opt": "use RUN --security and --allow",
		"squash":       "layers are not squashed",
		"stream":       "the build context is never copied anyway",
		"policy":       "policies are not supported",
	},
	"run": {
		"detach":       "strake runs in the foreground only",
		"name":         "containers have no names: they end with the command",
		"publish":      "ports are not published yet; use --network host",
		"publish-all":  "ports are not published yet; use --network host",
		"restart":      "strake runs in the foreground only",
		"mount":        "use -v",
		"privileged":   "not there yet",
		"cap-add":      "not there yet",
		"cap-drop":     "not there yet",
		"device":       "not there yet",
		"gpus":         "not there yet",
		"security-opt": "not there yet",
		"pull":         "an image that is not in the store is pulled; `strake pull` fetches a newer one",
	},
	"images": {"tree": "images are listed one to a line"},
	"push":   {"all-tags": "push each tag by its name"},
	"pull":   {"all-tags": "pull each tag by its name"},
	"rmi":    {"no-prune": "layers stay until `strake prune`"},
}

// dockerShorthands are the long names of docker's one-letter flags.
var dockerShorthands = map[string]string{
	"run -d": "detach", "run -p": "publish", "run -P": "publish-all",
	"push -a": "all-tags", "pull -a": "all-tags",
}

// args makes a check of the number of arguments.
func nArgs(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		if most == 0 {
			return usagef("%q takes no arguments", cmd.CommandPath())
		}
		return usagef("%q needs %s", cmd.CommandPath(), what)
	}
}

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `Exit codes:

  0          done
  1          the build or command failed
  125        the command line is wrong; or run failed before its process began
  126        run: the program can't be executed
  127        run: the program is not in the image
  128 + n    signal n ended it: 130 after Ctrl-C, 143 after SIGTERM

run passes the exit code of its process on; a process that signal n ended has
128 + n.`,
	}
}
