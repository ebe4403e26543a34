package plan

// IsCommit reports whether a Git ref is a whole commit ID, by SHA-1 or SHA-256,
// in the form that git prints.
func IsCommit(ref string) bool {
	if len(ref) != 40 && len(ref) != 64 {
		return false
	}
	for _, c := range []byte(ref) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
