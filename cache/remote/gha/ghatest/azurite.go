package ghatest

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/strake-build/strake/cache/remote/remotetest"
)

// Variable names the program of a real blob store, azurite-blob, which then has
// what is written, as Azure has it for GitHub. `make caches` runs tests so.
const Variable = "STRAKE_TEST_AZURITE"

// The account that Azurite has, its key, and a container in it.
const (
	account   = "strake"
	container = "cache"
)

var accountKey = []byte("a key for tests, and for nothing else")

// azurite is a running Azurite.
type azurite struct {
	endpoint string // http://127.0.0.1:1234
}

var listens = regexp.MustCompile(`listen\w* (?:on|at) (http://127\.0\.0\.1:\d+)`)

// startAzurite starts one with its files in dir.
func startAzurite(program, dir string) (a *azurite, stop func() error, err error) {
	cmd := exec.Command(program, "--blobHost", "127.0.0.1", "--blobPort", "0", "--location", dir, "--disableTelemetry")
	cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS="+account+":"+base64.StdEncoding.EncodeToString(accountKey))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if stop, err = remotetest.Start(cmd); err != nil {
		return nil, nil, err
	}
	found := make(chan string, 1)
	go func() {
		defer close(found)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if m := listens.FindStringSubmatch(lines.Text()); m != nil {
				found <- m[1]
			}
		}
	}()
	select {
	case endpoint := <-found:
		if endpoint == "" {
			return nil, nil, errors.Join(fmt.Errorf("%s does not listen", program), stop())
		}
		a = &azurite{endpoint}
	case <-time.After(30 * time.Second):
		return nil, nil, errors.Join(fmt.Errorf("%s does not say where it listens", program), stop())
	}
	if err := a.makeContainer(); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return a, stop, nil
}

const apiVersion = "2021-12-02"

func sign(parts ...string) string {
	h := hmac.New(sha256.New, accountKey)
	h.Write([]byte(strings.Join(parts, "\n")))
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

func expiry() string { return time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05Z") }

func (a *azurite) makeContainer() error {
	end := expiry()
	q := url.Values{"restype": {"container"}, "sv": {apiVersion}, "ss": {"b"}, "srt": {"sco"}, "sp": {"rwdlac"}, "se": {end}}
	// A shared access signature for the account.
	q.Set("sig", sign(account, "rwdlac", "b", "sco", "", end, "", "", apiVersion, "", ""))
	req, err := http.NewRequest(http.MethodPut, a.endpoint+"/"+account+"/"+container+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("make a container: the store answers %s", resp.Status)
	}
	return nil
}

// address is where a blob is written, or read: with a shared access signature
// for this blob, as GitHub's service gives them.
func (a *azurite) address(name string) string {
	end := expiry()
	q := url.Values{"sv": {apiVersion}, "sr": {"b"}, "sp": {"rcw"}, "se": {end}}
	q.Set("sig", sign("rcw", "", end, "/blob/"+account+"/"+container+"/"+name, "", "", "", apiVersion, "b", "", "", "", "", "", "", ""))
	return a.endpoint + "/" + account + "/" + container + "/" + name + "?" + q.Encode()
}

// size is how large a blob is; -1 if there is none.
func (a *azurite) size(name string) int64 {
	resp, err := http.Head(a.address(name))
	if err != nil {
		return -1
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return -1
	}
	return resp.ContentLength
}
