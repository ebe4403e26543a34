package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writeExamples writes the build files that are shown in a document, each into
// a directory of its own below dir, with the files that most of them copy.
func writeExamples(document, dir string) error {
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	n := 0
	for _, block := range strings.Split(string(text), "\n```")[1:] {
		head, body, _ := strings.Cut(block, "\n")
		if !strings.HasPrefix(head, "dockerfile") || !strings.Contains("\n"+body, "\nFROM ") {
			continue
		}
		n++
		context := filepath.Join(dir, fmt.Sprintf("%02d", n))
		if err := os.MkdirAll(filepath.Join(context, "src", "x"), 0o755); err != nil {
			return err
		}
		// BuildKit would fetch the language's image.
		body = strings.ReplaceAll(body, "# syntax=", "# syntax of ")
		files := map[string]string{"Dockerfile": body + "\n"}
		for _, name := range []string{"foo", "bar", "x/a.txt", "x/y/a.txt", "x/y/b.txt", "src/x/b.txt", "hom.txt", "home.txt", "hello.txt", "file1.txt", "README.md", "package.json", "go.mod", "app.sh"} {
			files[name] = "content of " + name + "\n"
		}
		for name, content := range files {
			file := filepath.Join(context, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
				return err
			}
		}
	}
	if n < 20 {
		return fmt.Errorf("%s: only %d build files were found: it has changed", document, n)
	}
	return nil
}
