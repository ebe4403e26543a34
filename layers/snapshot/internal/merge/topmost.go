package merge

import "slices"

// Topmost is dirs, lowest first, without those that come again further up: the
// upper one has all that they show, and overlayfs refuses to take a directory
// twice. Images have the empty layer many times.
func Topmost(dirs []string) []string {
	seen := make(map[string]bool, len(dirs))
	var list []string
	for _, dir := range slices.Backward(dirs) {
		if !seen[dir] {
			seen[dir] = true
			list = append(list, dir)
		}
	}
	slices.Reverse(list)
	return list
}
