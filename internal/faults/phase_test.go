package faults

import (
	"path/filepath"
)

// phase is a command that is disturbed, on a store that is prepared for it.
type phase struct {
	name string
	// prepare are the commands that prepare the store, if any.
	prepare func(l *lab) [][]string
	// args is the command.
	args func(b *bed) []string
}

// phases are all that strake does to a store, in commands as small as there are.
func phases() []phase {
	pulled := func(l *lab) [][]string { return [][]string{{"pull", l.base}} }
	unpacked := func(l *lab) [][]string { return [][]string{{"build", "-f", file(l, "unpack"), l.context}} }
	built := func(l *lab) [][]string { return [][]string{{"build", "-t", "app", l.context}} }
	build := func(name string) func(b *bed) []string {
		return func(b *bed) []string { return []string{"build", "-f", file(b.lab, name), "-t", name, b.lab.context} }
	}
	return []phase{
		{"pull", nil, func(b *bed) []string { return []string{"pull", b.lab.base} }},
		{"unpack", pulled, build("unpack")},
		{"run", unpacked, build("run")},
		{"copy", unpacked, build("copy")},
		{"pack", built, func(b *bed) []string {
			return []string{"build", "-o", "type=oci,dest=" + b.out("image.tar"), b.lab.context}
		}},
		{"push", built, func(b *bed) []string { return []string{"build", "-t", b.image, "--push", b.lab.context} }},
		{"export cache", built, func(b *bed) []string {
			return []string{"build", "--cache-to", "type=local,dest=" + b.out("cache"), "-o", "type=local,dest=" + b.out("tree"), b.lab.context}
		}},
		{"save", built, func(b *bed) []string { return []string{"save", "-o", b.out("app.tar"), "app"} }},
		{"load", pulled, func(b *bed) []string { return []string{"load", "-i", b.lab.archive()} }},
		{"prune", func(l *lab) [][]string {
			return append(built(l), []string{"build", "-f", file(l, "run"), l.context}, []string{"build", "-f", file(l, "copy"), l.context})
		}, func(b *bed) []string { return []string{"prune", "--all", "--force"} }},
		{"build", nil, func(b *bed) []string { return []string{"build", "-t", b.image, "--push", b.lab.context} }},
	}
}

// file is the build file of a phase.
func file(l *lab, name string) string { return filepath.Join(l.context, name+".Dockerfile") }

// archive is an archive with the image that is compared.
func (l *lab) archive() string {
	return filepath.Join(lazily(l, l.stores, "archive", func() string {
		b := l.prepared()
		b.ok("build", "-o", "type=docker,name=loaded,dest="+b.out("app.tar"), l.context)
		return b.dir
	}), "out", "app.tar")
}

// prepared is a bed that lives as long as the lab.
func (l *lab) prepared() *bed { return newBed(l.root, l.at(l.root)) }

// store makes the store of the bed one that was prepared by commands.
func (b *bed) store(name string, prepare func(l *lab) [][]string) {
	b.Helper()
	template := lazily(b.lab, b.lab.stores, name, func() string {
		t := b.lab.prepared()
		for _, args := range prepare(b.lab) {
			t.ok(args...)
		}
		return t.s.Root
	})
	b.copyStore(template)
}

// copyStore makes the store of the bed a copy.
func (b *bed) copyStore(template string) {
	b.Helper()
	b.before = diskUsage(template)
	b.must(copyTree(template, b.s.Root))
}

// begin prepares the store for the phase, and says that its command must work
// after what happens to it.
func (p phase) begin(b *bed) {
	b.Helper()
	if p.prepare != nil {
		b.store(p.name, p.prepare)
	}
	b.again = p.args(b)
}
