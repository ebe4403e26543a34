package snapshottest

import "github.com/strake-build/strake/layers"

// A scenario is some lower layers, what is done on top of them, and the layer
// that this makes.
type scenario struct {
	name   string
	owners bool // gives files away
	lower  [][]step
	run    []step
	want   string
}

// base is a lower layer with a bit of everything.
var base = [][]step{{
	mkdir("etc", 0o755),
	write("etc/passwd", "root"),
	write("etc/group", "root"),
	mkdir("usr", 0o755),
	mkdir("usr/bin", 0o755),
	write("usr/bin/sh", "sh"),
	symlink("sh", "usr/bin/bash"),
	mkdir("empty", 0o755),
}}

var scenarios = []scenario{
	{name: "nothing", lower: base},
	{name: "on nothing", run: []step{write("f", "1")}, want: `file f 0644 "1"`},
	{
		name:  "create",
		lower: base,
		run:   []step{write("etc/hosts", "h"), mkdir("new", 0o1777), write("new/f", "f"), write("top", "")},
		want: `
			dir etc 0755
			file etc/hosts 0644 "h"
			dir new 1777
			file new/f 0644 "f"
			file top 0644 ""`,
	},
	{
		name:  "modify",
		lower: base,
		run:   []step{appendTo("etc/passwd", "!"), write("usr/bin/sh", "dash")},
		want: `
			dir etc 0755
			file etc/passwd 0644 "root!"
			dir usr 0755
			dir usr/bin 0755
			file usr/bin/sh 0644 "dash"`,
	},
	{
		name:  "create and remove again",
		lower: base,
		run:   []step{write("etc/tmp", "x"), mkdir("usr/tmp", 0o755), write("usr/tmp/f", "x"), remove("etc/tmp"), removeAll("usr/tmp")},
	},
	{
		name:  "chmod",
		lower: base,
		run:   []step{chmod("etc/passwd", 0o600), chmod("usr/bin", 0o700), chmod("usr/bin/sh", 0o4755)},
		want: `
			dir etc 0755
			file etc/passwd 0600 "root"
			dir usr 0755
			dir usr/bin 0700
			file usr/bin/sh 4755 "sh"`,
	},
	{
		name:  "chmod to the same mode",
		lower: base,
		run:   []step{chmod("etc/passwd", 0o644), chmod("usr/bin", 0o755)},
	},
	{
		name:   "chown",
		owners: true,
		lower:  base,
		run:    []step{chown("etc/passwd", 1, 2), chown("usr", 3, 4), chown("usr/bin/bash", 5, 6)},
		want: `
			dir etc 0755
			file etc/passwd 0644 "root" owner=1:2
			dir usr 0755 owner=3:4
			dir usr/bin 0755
			symlink usr/bin/bash sh owner=5:6`,
	},
	{
		name:  "touch",
		lower: base,
		run:   []step{touch("etc/passwd", touched), touch("usr/bin", touched), write("etc/group", "root"), touch("etc/group", old)},
		want: `
			dir etc 0755
			file etc/passwd 0644 "root" touched`,
	},
	{
		name:  "other content of the same size and time",
		lower: base,
		run:   []step{write("etc/group", "toor"), touch("etc/group", old)},
		want: `
			dir etc 0755
			file etc/group 0644 "toor"`,
	},
	{
		name:  "delete a file",
		lower: base,
		run:   []step{remove("etc/passwd"), remove("usr/bin/bash")},
		want: `
			dir etc 0755
			whiteout etc/passwd
			dir usr 0755
			dir usr/bin 0755
			whiteout usr/bin/bash`,
	},
	{
		name:  "delete a directory",
		lower: base,
		run:   []step{removeAll("usr"), remove("empty")},
		want: `
			whiteout empty
			whiteout usr`,
	},
	{
		name:  "delete what two layers have",
		lower: [][]step{base[0], {mkdir("usr", 0o755), mkdir("usr/bin", 0o755), write("usr/bin/ls", "ls")}},
		run:   []step{removeAll("usr/bin")},
		want: `
			dir usr 0755
			whiteout usr/bin`,
	},
	{
		name:  "file becomes directory",
		lower: base,
		run:   []step{remove("etc/passwd"), mkdir("etc/passwd", 0o755), write("etc/passwd/f", "f")},
		want: `
			dir etc 0755
			dir etc/passwd 0755
			file etc/passwd/f 0644 "f"`,
	},
	{
		name:  "directory becomes file",
		lower: base,
		run:   []step{removeAll("usr/bin"), write("usr/bin", "file")},
		want: `
			dir usr 0755
			file usr/bin 0644 "file"`,
	},
	{
		name:  "directory becomes symlink",
		lower: base,
		run:   []step{removeAll("usr/bin"), symlink("/etc", "usr/bin")},
		want: `
			dir usr 0755
			symlink usr/bin /etc`,
	},
	{
		name:  "directory made again",
		lower: base,
		run:   []step{removeAll("usr/bin"), mkdir("usr/bin", 0o755), write("usr/bin/new", "n")},
		want: `
			dir usr 0755
			dir usr/bin 0755 opaque
			file usr/bin/new 0644 "n"`,
	},
	{
		name:  "directory made again with what it had",
		lower: base,
		run:   []step{removeAll("etc"), mkdir("etc", 0o755), write("etc/passwd", "root"), touch("etc/passwd", old)},
		want: `
			dir etc 0755 opaque
			file etc/passwd 0644 "root"`,
	},
	{
		name:  "empty directory made again",
		lower: base,
		run:   []step{remove("empty"), mkdir("empty", 0o755)},
	},
	{
		name:  "empty directory made again and filled",
		lower: base,
		run:   []step{remove("empty"), mkdir("empty", 0o755), write("empty/f", "f")},
		want: `
			dir empty 0755
			file empty/f 0644 "f"`,
	},
	{
		name:  "directory emptied and removed inside another",
		lower: base,
		run:   []step{remove("usr/bin/sh"), remove("usr/bin/bash"), remove("usr/bin")},
		want: `
			dir usr 0755
			whiteout usr/bin`,
	},
	{
		name:  "rename a file",
		lower: base,
		run:   []step{move("etc/passwd", "etc/moved")},
		want: `
			dir etc 0755
			file etc/moved 0644 "root"
			whiteout etc/passwd`,
	},
	{
		name:  "rename over a file",
		lower: base,
		run:   []step{write("etc/.new", "new"), move("etc/.new", "etc/passwd")},
		want: `
			dir etc 0755
			file etc/passwd 0644 "new"`,
	},
	{
		name:  "rename a directory",
		lower: base,
		run:   []step{move("etc", "moved")},
		want: `
			whiteout etc
			dir moved 0755
			file moved/group 0644 "root"
			file moved/passwd 0644 "root"`,
	},
	{
		name:  "rename a new directory over a removed one",
		lower: base,
		run:   []step{mkdir("n", 0o755), write("n/f", "f"), removeAll("etc"), move("n", "etc")},
		want: `
			dir etc 0755 opaque
			file etc/f 0644 "f"`,
	},
	{
		name:  "hard link to a new file",
		lower: base,
		run:   []step{write("etc/a", "a"), hardlink("etc/a", "usr/b")},
		want: `
			dir etc 0755
			file etc/a 0644 "a"
			dir usr 0755
			hardlink usr/b etc/a`,
	},
	{
		name:  "hard link to a file below",
		lower: base,
		run:   []step{hardlink("etc/passwd", "etc/link")},
		want: `
			dir etc 0755
			file etc/link 0644 "root"
			hardlink etc/passwd etc/link`,
	},
	{
		name:  "one of two hard links removed",
		lower: [][]step{{write("a", "a"), hardlink("a", "b")}},
		run:   []step{remove("a")},
		want:  `whiteout a`,
	},
	{
		name:  "symlinks",
		lower: base,
		run:   []step{symlink("/nowhere", "abs"), symlink("../x", "usr/rel"), remove("usr/bin/bash"), symlink("zsh", "usr/bin/bash")},
		want: `
			symlink abs /nowhere
			dir usr 0755
			dir usr/bin 0755
			symlink usr/bin/bash zsh
			symlink usr/rel ../x`,
	},
	{
		name:  "xattrs",
		lower: [][]step{{write("f", "f"), xattr("f", "user.a", "1"), mkdir("d", 0o755), xattr("d", "user.d", "1"), write("g", "g"), xattr("g", "user.g", "1")}},
		run:   []step{xattr("f", "user.b", "2"), xattr("d", "user.d", "2"), removeXattr("g", "user.g")},
		want: `
			dir d 0755 user.d=2
			file f 0644 "f" user.a=1 user.b=2
			file g 0644 "g"`,
	},
	{
		name: "recorded owners",
		lower: [][]step{{
			write("f", "f"), xattr("f", layers.OwnerXattr, "5:6:644"),
			write("g", "g"), xattr("g", layers.OwnerXattr, "5:6:644"),
			write("h", "h"), xattr("h", layers.OwnerXattr, "5:6:644"),
			mkdir("d", 0o755), xattr("d", layers.OwnerXattr, "7:8:755"),
			mkdir("e", 0o755), xattr("e", layers.OwnerXattr, "7:8:755"),
		}},
		run: []step{appendTo("f", "!"), chmod("g", 0o4700), write("d/new", "n"), chmod("e", 0o700), chmod("h", 0o644)},
		want: `
			dir d 0755 owner=7:8
			file d/new 0644 "n"
			dir e 0700 owner=7:8
			file f 0644 "f!" owner=5:6
			file g 4700 "g" owner=5:6`,
	},
	{
		name:  "fifos and sockets",
		lower: base,
		run:   []step{mkfifo("etc/fifo"), socket("etc/socket"), remove("etc/passwd"), socket("etc/passwd")},
		want: `
			dir etc 0755
			fifo etc/fifo 0600
			whiteout etc/passwd`,
	},
	{
		name:  "deep",
		lower: [][]step{{mkdir("d", 0o755), mkdir("d/d", 0o755), write("d/d/x", "x")}},
		run:   []step{deep(6), remove("d/d/x")},
		want: `
			dir d 0755
			dir d/d 0755
			dir d/d/d 0755
			dir d/d/d/d 0755
			dir d/d/d/d/d 0755
			dir d/d/d/d/d/d 0755
			file d/d/d/d/d/d/f 0644 "deep"
			whiteout d/d/x`,
	},
	{
		name:  "names that look like marks",
		lower: base,
		run:   []step{write("etc/.wh.passwd", "no"), write("etc/wh", "")},
		want: `
			dir etc 0755
			file etc/.wh.passwd 0644 "no"
			file etc/wh 0644 ""`,
	},
	{
		name:  "names that are no text",
		lower: [][]step{{write("\xff\xfe", "1")}},
		run:   []step{remove("\xff\xfe"), write("\xfe", "2")},
		want:  "file \xfe 0644 \"2\"\nwhiteout \xff\xfe",
	},
}
