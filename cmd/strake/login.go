package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

type loginOptions struct {
	registryOptions
	user, password string
	stdin          bool
}

func newLogin(e *env) *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:     "login [OPTIONS] [REGISTRY]",
		Short:   "Store credentials for a registry",
		Long:    "Check credentials with a registry (Docker Hub if none is named) and store them where docker does: in a credential helper or ~/.docker/config.json.",
		Example: "  strake login registry.example\n  pass registry | strake login -u me --password-stdin registry.example",
		Args:    nArgs(0, 1, "at most one registry"),
		RunE: func(cmd *cobra.Command, args []string) error {
			server := "docker.io"
			if len(args) > 0 {
				server = args[0]
			}
			return runLogin(cmd.Context(), o, server, e)
		},
	}
	cmd.Flags().StringVarP(&o.user, "username", "u", "", "user name")
	cmd.Flags().StringVarP(&o.password, "password", "p", "", "password or token; --password-stdin is safer")
	cmd.Flags().BoolVar(&o.stdin, "password-stdin", false, "read the password from stdin")
	o.registryOptions.addFlags(cmd.Flags())
	return cmd
}

func runLogin(ctx context.Context, o loginOptions, server string, e *env) error {
	client, err := o.client(e, nil, nil)
	if err != nil {
		return err
	}
	switch {
	case o.stdin && o.password != "":
		return usagef("--password and --password-stdin exclude each other")
	case o.stdin && o.user == "":
		return usagef("--password-stdin needs --username")
	case o.stdin:
		b, err := io.ReadAll(io.LimitReader(e.stdin, 1<<20))
		if err != nil {
			return err
		}
		o.password = strings.TrimRight(string(b), "\r\n")
	case o.password != "":
		e.warnf("a password on the command line can be seen by others: use --password-stdin")
	}
	if o.user == "" || o.password == "" {
		if err := o.ask(e); err != nil {
			return err
		}
	}
	if err := client.Login(ctx, server, o.user, o.password); err != nil {
		return err
	}
	return e.printf("Login Succeeded\n")
}

// ask asks for what is missing on the terminal.
func (o *loginOptions) ask(e *env) error {
	if !e.isTerminal(e.stdin) {
		return errors.New("stdin is no terminal to ask on: give --username and --password-stdin")
	}
	if o.user == "" {
		fmt.Fprint(e.stderr, "Username: ")
		line, err := bufio.NewReader(e.stdin).ReadString('\n')
		if err != nil {
			return err
		}
		o.user = strings.TrimSpace(line)
	}
	if o.password == "" {
		fmt.Fprint(e.stderr, "Password: ")
		b, err := term.ReadPassword(int(e.stdin.Fd()))
		fmt.Fprintln(e.stderr)
		if err != nil {
			return err
		}
		o.password = string(b)
	}
	if o.user == "" || o.password == "" {
		return errors.New("a user name and a password are needed")
	}
	return nil
}
