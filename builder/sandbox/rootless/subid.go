package rootless

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// ranges are the additional ids that a user may map, and the programs that do
// it.
type ranges struct {
	uids, gids           []idRange // inside is not set
	newuidmap, newgidmap string
}

// findRanges returns the ranges of the user, or why there are none.
func findRanges(uid int) (ranges, error) {
	var r ranges
	names := []string{strconv.Itoa(uid)}
	if u, err := user.LookupId(names[0]); err == nil {
		names = append(names, u.Username)
	}
	var err error
	if r.uids, err = readSubids("/etc/subuid", names); err != nil {
		return r, err
	}
	if r.gids, err = readSubids("/etc/subgid", names); err != nil {
		return r, err
	}
	if r.newuidmap, err = exec.LookPath("newuidmap"); err == nil {
		r.newgidmap, err = exec.LookPath("newgidmap")
	}
	if err != nil {
		return r, errors.New("newuidmap or newgidmap is missing (package uidmap or shadow-utils)")
	}
	return r, nil
}

func readSubids(name string, users []string) ([]idRange, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("there is no %s", name)
	}
	defer f.Close()
	found, err := parseSubids(f, users)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no range for user %s", name, users[len(users)-1])
	}
	return found, nil
}

// parseSubids reads lines of the form user:first:count. Lines that are not are
// passed over, as newuidmap does.
func parseSubids(r io.Reader, users []string) ([]idRange, error) {
	var found []idRange
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Split(strings.TrimSpace(sc.Text()), ":")
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 {
			continue
		}
		for _, u := range users {
			if f[0] == u {
				found = append(found, idRange{outside: int(first), count: int(count)})
				break
			}
		}
	}
	return found, sc.Err()
}

// mapArgs are the arguments of newuidmap or newgidmap: root is the user, and
// what follows comes from the ranges.
func mapArgs(pid, id int, extra []idRange) []string {
	args := []string{strconv.Itoa(pid), "0", strconv.Itoa(id), "1"}
	next := 1
	for _, r := range extra {
		args = append(args, strconv.Itoa(next), strconv.Itoa(r.outside), strconv.Itoa(r.count))
		next += r.count
	}
	return args
}

// Range returns how many additional ids a user may map, or why there are none.
func Range(uid int) (int, error) {
	r, err := findRanges(uid)
	if err != nil {
		return 0, err
	}
	return min(size(r.uids), size(r.gids)), nil
}
