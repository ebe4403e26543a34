package random

import (
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"unicode/utf8"
)

// New makes an input.
func New(seed uint64) *Input {
	d := dice{rand.New(rand.NewPCG(seed, 5))}
	in := &Input{Seed: seed, Files: d.files(), Labels: d.labels(), Args: map[string]string{}}
	if d.in(3) {
		in.IgnoreName = d.one(".dockerignore", ".dockerignore", "Dockerfile.dockerignore")
		in.Ignore = d.ignore(in.Files)
	}
	for range d.IntN(3) {
		in.Args[d.variable()] = d.one("given", "a", "", "x y", "sub/dir")
	}
	w := writer{dice: d, in: in}
	w.file()
	return in
}

// writer writes a build file.
type writer struct {
	dice
	in     *Input
	escape string
	stages []string // names; "" for none
	shell  bool     // the stage has one: its base is busybox
	runs   int
	made   [][]string // what is in the stages, by their numbers
}

// seldom is for what fails, mostly.
func (w *writer) seldom() bool { return w.dice.in(25) }

func (w *writer) add(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if word, rest, ok := strings.Cut(text, " "); ok && w.dice.in(12) {
		text = strings.ToLower(word) + w.one(" ", "  ", "\t") + rest
	}
	w.in.Instructions = append(w.in.Instructions, text)
}

func (w *writer) file() {
	w.escape = `\`
	if w.dice.in(8) {
		w.escape = "`"
		w.in.Directives = append(w.in.Directives, "# escape=`")
	}
	if w.dice.in(10) {
		w.in.Directives = append(w.in.Directives, w.one("# a comment", "", "  # another"))
	}
	for range w.IntN(3) {
		w.add("ARG %s", w.assignment(true))
	}
	stages := 1 + w.IntN(4)
	for i := range stages {
		w.stage(i)
	}
	if w.dice.in(5) {
		w.in.Target = w.stages[w.IntN(len(w.stages))]
	}
}

func (w *writer) stage(i int) {
	from, shell := "scratch", false
	switch n := w.IntN(10); {
	case n < 3:
		from, shell = "busybox", true
	case n < 6 && i > 0:
		j := w.IntN(i)
		if from = w.stages[j]; from == "" {
			from = "scratch"
		}
	}
	name := ""
	if !w.dice.in(3) {
		name = fmt.Sprintf("%s%d", w.one("s", "st-", "b.", "_"), i)
		name = strings.TrimPrefix(name, "_")
		if name[0] < 'a' {
			name = "n" + name
		}
	}
	switch {
	case w.dice.in(8):
		from = fmt.Sprintf("${NOBASE:-%s}", from)
	case w.dice.in(8):
		from = "--platform=$" + w.one("TARGETPLATFORM", "BUILDPLATFORM") + " " + from
	}
	line := "FROM " + from
	if name != "" {
		line += w.one(" AS ", " as ") + name
	}
	w.add("%s", line)
	w.stages = append(w.stages, name)
	w.made = append(w.made, nil)
	w.shell = shell
	for range 1 + w.IntN(8) {
		w.instruction(i)
	}
}

func (d dice) variable() string { return d.one("A", "B", "C", "DIR", "X_1", "A") }

// value is a word with variables, perhaps.
func (w *writer) value() string {
	v := w.variable()
	switch w.IntN(22) {
	case 0:
		return "$" + v
	case 1:
		return "${" + v + "}"
	case 2:
		return "${" + v + ":-" + w.word() + "}"
	case 3:
		return "${" + v + ":+" + w.word() + "}"
	case 4:
		return "${" + v + "-" + w.word() + "}"
	case 5:
		return "${" + v + "+" + w.word() + "}"
	case 6:
		return "${" + v + w.one("#", "##", "%", "%%") + w.one("a", "*", "s*", "?", "*/", "/*", "x*y") + "}"
	case 7:
		return "${" + v + w.one("/", "//") + w.one("a", "s", "?", "*", "/") + "/" + w.word() + "}"
	case 8:
		return `"` + w.word() + ` $` + v + `"`
	case 9:
		return `'$` + v + `'`
	case 10:
		return w.escape + "$" + v
	case 11:
		return w.word() + "$" + v + w.one("", "_x", "/y", ".")
	case 12:
		return `"a` + w.escape + `"b"`
	case 13:
		return "${" + v + ":-${" + w.variable() + ":-" + w.word() + "}}"
	case 14:
		return w.word() + w.escape + " " + w.word()
	case 15:
		return "${" + v + ":-\"q '" + w.word() + "\"}"
	case 16:
		return `"` + "$" + v + `"'` + w.word() + `'`
	}
	return w.word()
}

func (w *writer) word() string {
	return w.one("v", "1", "some", "s/t", "a.b", "", "ü", "x:y", "-", "a=b", "#h")
}

func (w *writer) assignment(global bool) string {
	v := w.variable()
	if w.dice.in(5) {
		return v
	}
	if global && w.dice.in(4) {
		return v + "=" + w.one("${TARGETARCH}", "$BUILDOS", "${TARGETPLATFORM:-x}")
	}
	return v + "=" + w.value()
}

func (w *writer) path() string {
	if w.dice.in(8) {
		return w.value()
	}
	p := w.one("x", "y", "dir", "z/q", "a", "etc", "x/y/z", "sub")
	p = w.one("/", "/", "", "./", "/../", "//") + p + w.one("", "", "/", "/.")
	if w.dice.in(8) {
		p = w.one("$DIR/", "${DIR:-d}/", "/opt/$A/") + p
	}
	return p
}

// source is one of a COPY; stage is the stage it copies from, or -1.
func (w *writer) source(stage int) string {
	if stage >= 0 {
		if made := w.made[stage]; len(made) > 0 && w.dice.in(2) {
			return made[w.IntN(len(made))]
		}
		if w.seldom() {
			return w.one("/x", "/dir", "/etc", "/a", "x/y")
		}
		return w.one("/", "/*", "/d*", ".", "/x*/*", "./")
	}
	if w.seldom() {
		return w.one("../a", "missing", "a/", "a/.")
	}
	if len(w.in.Files) == 0 || w.dice.in(4) {
		return w.one(".", "/", "*", "./", "?", "*/*", "**", "*.none", "d*r", "[a-d]*", "Docker*", "Dockerfile")
	}
	f := w.in.Files[w.IntN(len(w.in.Files))]
	if f.Type == 'l' && !w.seldom() {
		f = w.in.Files[0]
	}
	p := strings.NewReplacer("$", w.escape+"$", "'", w.escape+"'", `"`, w.escape+`"`).Replace(f.Path)
	switch w.IntN(9) {
	case 0:
		return path.Dir(p) + "/*"
	case 1:
		return "/" + p
	case 2:
		if f.Type == 'd' {
			return p + w.one("/", "/.")
		}
	case 3:
		_, last := utf8.DecodeLastRuneInString(p)
		return p[:len(p)-last] + "*"
	case 4:
		return path.Join(path.Dir(p), w.one("*", "?", "[a-c]", "*.*"))
	case 5:
		return "./" + p
	}
	return p
}

// copyFlags are flags of COPY and ADD, but for from.
func (w *writer) copyFlags(command string) (flags []string) {
	flag := func(n int, f string) {
		if w.dice.in(n) {
			flags = append(flags, f)
		}
	}
	owner := w.one("1", "1:2", "0", "1000:0", "2147483647", "${O:-5}", "07:7")
	switch {
	case w.seldom():
		owner = w.one("root", "nouser", "1:nogroup", ":3", "4294967294", "4294967295", "-1")
	case w.shell:
		owner = w.one("root", "www-data", "nobody:users", "operator:0", "33:www-data", "1", "1:nogroup")
	}
	flag(6, "--chown="+owner)
	mode := w.one("755", "0644", "4755", "1777", "u+x", "go-w", "a=r,u+w", "u=rwX,go=rX", "0", "${M:-700}", "g+s", "o=u", "+t", "a+X")
	if w.seldom() {
		mode = w.one("9", "-x", "77777", "u", "")
	}
	flag(6, "--chmod="+mode)
	flag(5, "--link"+w.one("", "", "=true", "=false"))
	if command == "COPY" {
		flag(6, "--parents")
	}
	for w.dice.in(6) {
		flags = append(flags, "--exclude="+quoteless(w.pattern(w.in.Files)))
	}
	return flags
}

// quoteless leaves out what would end a word.
func quoteless(s string) string { return strings.NewReplacer(" ", "", `"`, "", "'", "").Replace(s) }

// copyLine is a COPY or ADD in one of its forms.
func (w *writer) copyLine(command string, stage int) string {
	flags := w.copyFlags(command)
	from := -1
	switch {
	case command == "COPY" && stage > 0 && w.dice.in(2):
		from = w.IntN(stage)
		name := w.stages[from]
		if name == "" || w.dice.in(3) {
			name = fmt.Sprint(from)
		}
		flags = append(flags, "--from="+name)
	case command == "COPY" && w.dice.in(12):
		from = 0
		flags = append(flags, "--from=busybox")
	case command == "ADD" && w.dice.in(5):
		flags = append(flags, "--unpack="+w.one("true", "false"))
	}
	var sources []string
	for range 1 + w.IntN(3)/2 + w.IntN(8)/7 {
		sources = append(sources, w.source(from))
	}
	dest := w.path()
	if len(sources) > 1 && !w.seldom() {
		dest = strings.TrimSuffix(dest, ".") + "/"
	}
	if strings.HasPrefix(dest, "/") && !strings.Contains(dest, "$") {
		w.made[stage] = append(w.made[stage], path.Clean(dest)) // BuildKit takes //x for nothing with --parents
	}
	words := append(sources, dest)
	head := strings.Join(append([]string{command}, flags...), " ")
	odd := false
	for _, s := range sources {
		odd = odd || strings.ContainsAny(s, " \"'\\`$#")
	}
	if odd || w.dice.in(8) {
		quoted := make([]string, len(words))
		for i, s := range words {
			quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
		}
		return head + " [" + strings.Join(quoted, w.one(", ", ",")) + "]"
	}
	if w.dice.in(8) {
		return head + " " + strings.Join(words, " "+w.escape+"\n  "+w.one("", "# a comment\n  "))
	}
	return head + " " + strings.Join(words, " ")
}

func (w *writer) instruction(stage int) {
	switch w.IntN(27) {
	case 0, 1, 2, 3, 4, 5, 6:
		w.add("%s", w.copyLine("COPY", stage))
	case 7, 8:
		w.add("%s", w.copyLine("ADD", stage))
	case 9, 10:
		w.add("ARG %s", w.assignment(false))
		if w.dice.in(4) {
			w.add("ARG %s", w.one("TARGETARCH", "BUILDPLATFORM", "TARGETOS=x", "A B", "A=1 B=$A"))
		}
	case 11, 12:
		w.env()
	case 13:
		w.add("LABEL %s", w.pairs())
	case 14, 15:
		w.add("WORKDIR %s", w.path())
	case 16:
		user := w.one("root", "1", "1:2", "0:0")
		if w.shell {
			user = w.one("root", "1", "${U:-nobody}", "www-data", "nobody:users", "5:users")
		}
		if w.seldom() {
			user = w.one("$A", "a:b", ":1", "1:", "4294967296")
		}
		w.add("USER %s", user)
	case 17:
		w.add("%s %s", w.one("CMD", "ENTRYPOINT"), w.command())
	case 18:
		w.add("SHELL %s", w.one(`["/bin/sh", "-c"]`, `["/bin/sh", "-ec"]`, `["sh","-x","-c"]`))
	case 19:
		port := w.one("80", "80/tcp 81/udp", "1000-1003", "${P:-8080}/tcp", "80 80", "0", "53/UDP 53/sctp", "$NONE 1")
		if w.seldom() {
			port = w.one("$A", "1:2", "70000", "80/x", "3-1")
		}
		w.add("EXPOSE %s", port)
	case 20:
		w.add("VOLUME %s", w.one("/v", `["/v", "/w"]`, "/v /$A", "${DIR:-d}", `["x$A"]`, "rel", "/v/.. /v"))
	case 21:
		w.add("%s", w.one("STOPSIGNAL SIGINT", "STOPSIGNAL 9", "STOPSIGNAL ${S:-hup}", "MAINTAINER me <me@$A>", "HEALTHCHECK NONE",
			"HEALTHCHECK --interval=5s --retries=2 CMD true $A", `HEALTHCHECK --timeout=1m --start-period=1s CMD ["true", "$A"]`, "STOPSIGNAL RTMIN+3"))
	case 22:
		w.add("ONBUILD %s", w.one("ENV A=on$A", "COPY . /on", "LABEL on=$B", "WORKDIR on", "ARG B=build", `CMD ["on"]`, "USER 7", "EXPOSE 9", w.one("RUN echo on", w.copyLine("COPY", stage))))
	case 23, 24:
		w.here()
	case 25, 26:
		w.run()
	}
}

func (w *writer) env() {
	if w.dice.in(6) {
		w.add("ENV %s %s", w.variable(), w.one("two words", "$A rest", `"quoted" $B`, "x"))
		return
	}
	w.add("ENV %s", w.pairs())
}

func (w *writer) pairs() string {
	var list []string
	for range 1 + w.IntN(3) {
		list = append(list, w.variable()+"="+w.value())
	}
	return strings.Join(list, w.one(" ", "  ", " "+w.escape+"\n\t"))
}

func (w *writer) command() string {
	return w.one("echo $A", `["echo", "$A"]`, `["a"]`, "true", `["sh", "-c", "x"]`, `[]`, `["unclosed"`, "echo 'a  b'", `[ "é" ]`)
}

// here writes a here-document as a source of COPY or ADD.
func (w *writer) here() {
	word := w.one("EOF", `"EOF"`, "'EOF'", "E1")
	end := strings.Trim(word, `"'`)
	dash := w.one("", "-")
	body := w.one("line\n", "$A ${B:-x}\n\tindented\n", "", "\n\n", `back\slash $A`+"\n", "'q' \"d\" $A\n", "# no comment\n", "EOFX\n", "a\\$A\n")
	if dash == "" {
		body = strings.ReplaceAll(body, "EOFX", " EOF")
	}
	flags, command := "", w.one("COPY", "ADD")
	if w.dice.in(3) {
		flags = strings.Join(w.copyFlags(command), " ") + " "
	}
	second := ""
	tail := ""
	if w.dice.in(5) {
		second, tail = " <<OTHER", "\nother $A\nOTHER"
	}
	w.add("%s %s<<%s%s%s %s\n%s%s%s", command, strings.TrimLeft(flags, " "), dash, word, second, w.path(), body, end, tail)
}

// run writes a RUN: they are few, since they cost time.
func (w *writer) run() {
	if !w.shell || w.runs >= 2 {
		w.add("LABEL run=%d", w.runs)
		return
	}
	w.runs++
	if w.dice.in(2) {
		w.add("USER root")
	}
	switch w.IntN(13) {
	case 0:
		w.add("RUN <<EOF\necho $A >/tmp/r1\nmkdir -p /tmp/x/y\nEOF")
	case 1:
		w.add("RUN --mount=type=bind,target=/ctx,rw cp -R /ctx/. /copied/ 2>/dev/null || true")
	case 2:
		w.add("RUN --mount=type=tmpfs,target=/t%d --mount=type=cache,target=/c echo x >/c/y; ls /c >/listed", w.IntN(2))
	case 3:
		w.add(`RUN ["/bin/sh", "-c", "echo $0 $A >/exec"]`)
	case 4:
		w.add("RUN rm -rf /x /etc/group; mkdir -p /x && echo new >/x/f")
	case 5:
		w.add("RUN ln -s /x/y /link; ln /bin/busybox /hard; chmod 4711 /hard; mkfifo /fifo; true")
	case 6:
		w.add("RUN env | grep -v -e HOSTNAME -e SHLVL -e _= -e OTEL -e TRACE | sort >/env; id >/id; pwd >/pwd || true")
	case 7:
		w.add("RUN --network=none --mount=type=bind,target=/src,source=.  ls -A /src | sort >/ls")
	case 8:
		w.add("RUN chown -R 5:6 /etc; chmod 700 /tmp; rm /bin/vi; touch -d @0 /etc/passwd")
	case 9:
		w.add("RUN mkdir -p d/e %s\n && echo \"$A\" >d/e/f", w.escape)
	case 10:
		w.add("RUN <<'EOF' cat >/here\n$A literal\nEOF")
	case 11:
		w.add("RUN mv /var /was; mkdir /var; echo x >/var/new")
	case 12:
		w.add("RUN mkdir -p /srv /x /opt; chgrp 77 /srv /x /opt /tmp /etc; chmod g+s / /srv /x /opt /tmp /etc")
	}
}
