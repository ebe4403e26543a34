package main

import (
	"context"

	"github.com/spf13/cobra"
)

func newLogout(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "logout [REGISTRY]",
		Short:   "Remove the stored credentials for a registry",
		Example: "  strake logout registry.example",
		Args:    nArgs(0, 1, "at most one registry"),
		RunE: func(cmd *cobra.Command, args []string) error {
			server := "docker.io"
			if len(args) > 0 {
				server = args[0]
			}
			return runLogout(cmd.Context(), server, e)
		},
	}
}

func runLogout(_ context.Context, server string, e *env) error {
	client, err := registryOptions{}.client(e, nil, nil)
	if err != nil {
		return err
	}
	if err := client.Logout(server); err != nil {
		return err
	}
	return e.printf("Removing login credentials for %s\n", server)
}
