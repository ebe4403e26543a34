package main

import (
	"context"

	"github.com/spf13/cobra"
)

func newCompletion(e *env) *cobra.Command {
	return &cobra.Command{
		Use:       "completion bash|zsh|fish|powershell",
		Short:     "Complete strake commands in your shell",
		Long:      "Print a script that makes your shell complete strake commands and flags.",
		Example:   "  source <(strake completion bash)\n  strake completion fish > ~/.config/fish/completions/strake.fish",
		Args:      nArgs(1, 1, "the name of a shell: bash, zsh, fish or powershell"),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCompletion(cmd.Context(), cmd.Root(), args[0], e)
		},
	}
}

func runCompletion(_ context.Context, root *cobra.Command, shell string, e *env) error {
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(e.stdout, true)
	case "zsh":
		return root.GenZshCompletion(e.stdout)
	case "fish":
		return root.GenFishCompletion(e.stdout, true)
	case "powershell":
		return root.GenPowerShellCompletionWithDesc(e.stdout)
	}
	return usagef("no completion for %q: it is bash, zsh, fish or powershell", shell)
}
