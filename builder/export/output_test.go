package export

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/layers/image"
)

func TestParseOutput(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Output{
		"out":                         {Type: "local", Dest: "out", Tar: true},
		"-":                           {Type: "tar", Dest: "-", Tar: true},
		"./a dir":                     {Type: "local", Dest: "./a dir", Tar: true},
		"type=image":                  {Type: "image", Tar: true},
		"type=image,push=true":        {Type: "image", Tar: true, Push: true},
		"type=tar,dest=-":             {Type: "tar", Dest: "-", Tar: true},
		"type=oci,dest=x,tar=0":       {Type: "oci", Dest: "x"},
		"TYPE=oci, dest=x":            {Type: "oci", Dest: "x", Tar: true},
		`type=local,"dest=a,b"`:       {Type: "local", Dest: "a,b", Tar: true},
		"type=registry,name=a":        {Type: "registry", Names: []string{"docker.io/library/a:latest"}, Tar: true},
		`type=image,"name=a:1,b.c/d"`: {Type: "image", Names: []string{"docker.io/library/a:1", "b.c/d:latest"}, Tar: true},
		"type=docker,dest=x,compression=zstd,compression-level=3,force-compression=true": {
			Type: "docker", Dest: "x", Tar: true, Pack: image.PackOptions{Compression: "zstd", Level: 3, Force: true}},
		"type=oci,dest=x,oci-mediatypes=false": {Type: "oci", Dest: "x", Tar: true, Pack: image.PackOptions{Docker: true}},
		"type=oci,dest=x,annotation.a.b=c=d":   {Type: "oci", Dest: "x", Tar: true, Annotations: []Annotation{{Level: "manifest", Key: "a.b", Value: "c=d"}}},
		"type=tar,dest=x,rewrite-timestamp=1":  {Type: "tar", Dest: "x", Tar: true, RewriteTimes: true},
	} {
		got, err := ParseOutput(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
}

func TestParseOutputRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                    "nothing given",
		"dest=x,push=true":                    "type= is missing",
		"type=":                               "is not one of",
		"type=zip":                            "is not one of",
		"type=cacheonly,dest=x":               "dest has no meaning for type=cacheonly",
		"type=oci,dest":                       "key=value",
		"type=oci,dest=":                      "dest is empty",
		"type=oci,dest=a,dest=b":              "given twice",
		"type=oci,dest=a,push=true":           "push has no meaning",
		"type=local,dest=a,compression=gzip":  "compression has no meaning",
		"type=image,dest=a":                   "dest has no meaning",
		"type=oci,dest=a,compression=lzma":    "not one of uncompressed, gzip, zstd",
		"type=oci,dest=a,compression-level=x": "it is a number",
		"type=oci,dest=a,tar=maybe":           "true or false",
		"type=image,name=Bad":                 "lower case",
		"type=image,unpack=true":              "unpack is not supported",
		"type=image,annotation.=x":            "not supported",
		`type=oci,"dest=a`:                    "-o type=oci",
	} {
		if o, err := ParseOutput(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %+v and %v, want an error with %q", in, o, err, want)
		}
	}
}

func FuzzParseOutput(f *testing.F) {
	for _, s := range []string{"out", "-", "type=oci,dest=x", `type=local,"dest=a,b"`, "type=image,name=a,push=true", "annotation.a=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseOutput(s)
		if err == nil && o.Type == "" {
			t.Errorf("%q has no type and no error", s)
		}
		_ = o.check(1)
	})
}
