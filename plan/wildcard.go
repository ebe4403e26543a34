package plan

// HasWildcards reports whether a source of a Copy is a pattern: has "*", "?" or
// "[" without a backslash before it.
func HasWildcards(p string) bool {
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '*', '?', '[':
			return true
		case '\\':
			i++
		}
	}
	return false
}
