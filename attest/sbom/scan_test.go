package sbom

import (
	"strings"
	"testing"
)

// Nothing that a hostile image has in its databases ends a scan.
func FuzzReaders(f *testing.F) {
	f.Add("Package: a\nStatus: install ok installed\nVersion: 1\n\n")
	f.Add("P:musl\nV:1\n\n")
	f.Add(`{"name":"@a/b","version":"1"}`)
	f.Fuzz(func(t *testing.T, data string) {
		for _, read := range []reader{(*found).dpkg, (*found).apk, (*found).npm, (*found).python} {
			got := &found{}
			_ = read(got, "x", strings.NewReader(data))
			got.document(Options{})
		}
	})
}

func TestSPDXLicense(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"MIT": "MIT", "GPL-2.0-or-later AND (MIT OR BSD-3-Clause)": "GPL-2.0-or-later AND (MIT OR BSD-3-Clause)",
		"GPL 2": "", "see LICENSE": "", "MIT, BSD": "", "AND": "",
	} {
		if got := spdxLicense(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
