// Command compare builds Dockerfiles with strake and with BuildKit and compares
// the images: their configurations and file trees, times aside.
//
//	go run ./bench/compare -strake ./strake -mirror 127.0.0.1:5000 DIR...
//
// Every Dockerfile and Dockerfile.* found below a DIR is a case; its context is
// the directory it is in. Images are looked for in the mirror, whichever
// registry they name. A case that BuildKit refuses must be refused.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/strake-build/strake/bench/pair"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	strake := flag.String("strake", "strake", "strake's program")
	mirror := flag.String("mirror", "", "host:port of a registry with the base images")
	hosts := flag.String("hosts", "docker.io,mirror.gcr.io,public.ecr.aws,registry.fedoraproject.org", "registries that the mirror stands for")
	only := flag.String("run", "", "regular expression of cases to run")
	flag.Parse()
	filter, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	both, err := pair.Start(pair.Options{Strake: *strake, Mirror: *mirror, Hosts: strings.Split(*hosts, ",")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, both.Stop()) }()

	passed, failed := 0, 0
	for _, root := range flag.Args() {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasPrefix(d.Name(), "Dockerfile") || !filter.MatchString(p) {
				return err
			}
			verdict := both.Compare(pair.Build{Context: filepath.Dir(p), Dockerfile: p}).Diff
			if verdict == "" {
				passed++
				fmt.Println("same", p)
			} else {
				failed++
				fmt.Println("DIFF", p)
				fmt.Println(verdict)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		return errors.New("images differ")
	}
	return nil
}
