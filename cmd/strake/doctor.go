package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/linux"
	"github.com/strake-build/strake/builder/sandbox/probe"
	"github.com/strake-build/strake/builder/sandbox/rootless"
)

type doctorOptions struct{ format string }

func newDoctor(e *env) *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor [OPTIONS]",
		Short: "Tell what this machine allows, and how to get what is missing",
		Long: `Try what builds need on this machine, by doing it, and tell how to get what is
missing. The exit code is 1 if builds will not work.`,
		Example: "  strake doctor\n  strake doctor --format json",
		Args:    nArgs(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), o, e) },
	}
	cmd.Flags().StringVar(&o.format, "format", "", formatHelp)
	return cmd
}

// finding is the outcome of one check.
type finding struct {
	Check  string
	Status string // ok, missing (something works less well) or FAILED (builds don't work)
	Text   string
	Advice string
}

const (
	statusOK      = "ok"
	statusMissing = "missing"
	statusFailed  = "FAILED"
)

func runDoctor(ctx context.Context, o doctorOptions, e *env) error {
	d := &doctor{e: e}
	d.examine(ctx)
	if o.format != "" {
		items := make([]any, len(d.findings))
		for i, f := range d.findings {
			items[i] = f
		}
		if err := printItems(e.stdout, o.format, items); err != nil {
			return err
		}
	}
	failed := 0
	for _, f := range d.findings {
		if f.Status == statusFailed {
			failed++
		}
		if o.format == "" {
			if err := e.printf("%-8s %-22s %s\n", f.Status, f.Check, strings.ReplaceAll(cleaned(f.Text), "\n", " ")); err != nil {
				return err
			}
			if f.Advice != "" {
				if err := e.printf("%31s %s\n", "", f.Advice); err != nil {
					return err
				}
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("builds will not work here: %d of %d checks failed", failed, len(d.findings))
	}
	return nil
}

// doctor examines a machine.
type doctor struct {
	e        *env
	findings []finding
}

func (d *doctor) ok(check, format string, args ...any) {
	d.findings = append(d.findings, finding{check, statusOK, fmt.Sprintf(format, args...), ""})
}

// bad notes what is wrong, with the first line of what is known of it.
func (d *doctor) bad(status, check string, err error, advice string) {
	d.findings = append(d.findings, finding{check, status, err.Error(), advice})
}

// examine looks at what the machine says of itself, and then tries what builds
// do: only that tells whether they work.
func (d *doctor) examine(ctx context.Context) {
	_, err := rootless.Enter()
	d.probe()
	if err != nil {
		d.bad(statusFailed, "rootless", err, "Run as root, or let ordinary users make user namespaces: sysctl -w user.max_user_namespaces=15000 kernel.apparmor_restrict_unprivileged_userns=0")
		return
	}
	s, err := openStore(d.e, registryOptions{})
	if err != nil {
		d.bad(statusFailed, "store", err, "Name another directory with --root or STRAKE_ROOT.")
		return
	}
	defer s.close()
	d.ok("store", "%s", s.Dir())
	overlay := d.sandboxes(ctx, s)
	d.network(ctx, s)
	if overlay {
		d.limits(ctx, s)
	}
}

// probe adds what can be known without trying.
func (d *doctor) probe() {
	dir, err := d.e.storeDir(rootless.UID())
	if err != nil {
		return // the store's check tells
	}
	for _, c := range probe.Run(dir) {
		f := finding{c.Name, statusOK, c.Detail, ""}
		if !c.OK {
			f.Status, f.Advice = statusMissing, c.Fix
		}
		d.findings = append(d.findings, f)
	}
}

// try runs a program in a sandbox, with an overlay or a plain directory as the
// root.
func (d *doctor) try(ctx context.Context, s *store, overlay bool, net *os.File, limits *specs.LinuxResources) error {
	dir, err := s.TempDir("doctor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, sub := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower", "true"), trueProgram(), 0o755); err != nil {
		return err
	}
	root := sandbox.Root{Bind: filepath.Join(dir, "lower")}
	if overlay {
		root = sandbox.Root{Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), UserXattr: s.mode.Rootless}
	}
	spec, err := sandbox.New(sandbox.Config{
		Args: []string{"/true"}, Dir: "/", Rootless: s.mode.Rootless, Resources: limits,
	})
	if err != nil {
		return err
	}
	runner, err := linux.New(linux.Options{Rootless: s.mode.Rootless})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("it takes longer than 20 seconds"))
	defer cancel()
	var out bytes.Buffer
	code, err := runner.Run(ctx, sandbox.Process{Spec: spec, Root: root, NetNS: net, Stdout: &out, Stderr: &out})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d: %s", code, strings.TrimSpace(out.String()))
	}
	return err
}

// trueProgram is an executable that does nothing, and does it well: the machine
// may have none that needs no library.
func trueProgram() []byte {
	machine, code := uint16(elf.EM_X86_64), []byte{0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05} // exit(0)
	if runtime.GOARCH == "arm64" {
		machine, code = uint16(elf.EM_AARCH64), []byte{0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4}
	}
	const base, head = 0x400000, 64 + 56
	var b bytes.Buffer
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: machine, Version: uint32(elf.EV_CURRENT), Entry: base + head,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	p := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base,
		Filesz: head + uint64(len(code)), Memsz: head + uint64(len(code)), Align: 0x1000,
	}
	// Writes to a Buffer don't fail, and the structs have fixed sizes.
	_ = binary.Write(&b, binary.LittleEndian, h)
	_ = binary.Write(&b, binary.LittleEndian, p)
	b.Write(code)
	return b.Bytes()
}

// sandboxes tries to run a process, and reports whether overlayfs works.
func (d *doctor) sandboxes(ctx context.Context, s *store) bool {
	if err := d.try(ctx, s, true, nil, nil); err == nil {
		d.ok("sandbox", "processes run isolated, on overlayfs")
		return true
	} else if perr := d.try(ctx, s, false, nil, nil); perr == nil {
		d.bad(statusFailed, "overlayfs", err, "Set STRAKE_DRIVER=copydir, which copies files instead; or put the store on ext4, xfs or tmpfs (--root), on Linux 5.11 or later.")
	} else {
		d.bad(statusFailed, "sandbox", perr, "Inside a container, give it the rights to make namespaces and mounts (docker: --privileged, or --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined). Building without RUN steps works all the same.")
	}
	return false
}

func (d *doctor) network(ctx context.Context, s *store) {
	n, err := s.network()
	if err == nil {
		ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("it takes longer than 20 seconds"))
		defer cancel()
		ep, cerr := n.Connect(ctx)
		if cerr == nil {
			d.ok("network", "isolated networks work")
			if cerr = ep.Close(); cerr == nil {
				return
			}
		}
		err = cerr
	}
	d.bad(statusMissing, "network", err, "Build with --network host or --network none.")
}

// limits tries to limit memory.
func (d *doctor) limits(ctx context.Context, s *store) {
	limit := int64(256 << 20)
	if err := d.try(ctx, s, true, nil, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		d.bad(statusMissing, "limits", err, "--memory and the --cpu flags need a cgroup that can be written to: run as root, or with systemd-run --user --scope -p Delegate=yes strake ...")
		return
	}
	d.ok("limits", "memory and CPU of steps can be limited")
}
