package plan

import (
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Op is what a step does: one of *Image, *Local, *Git, *HTTP, *Exec, *File,
// *Merge and *Diff. The set is closed.
type Op interface{ op() }

func (*Image) op() {}
func (*Local) op() {}
func (*Git) op()   {}
func (*HTTP) op()  {}
func (*Exec) op()  {}
func (*File) op()  {}
func (*Merge) op() {}
func (*Diff) op()  {}

// Image is the root file system of an image. It has no inputs.
type Image struct {
	// Ref is the normalised reference ("docker.io/library/alpine:3.18"); it
	// tells where to fetch from and is not part of the key.
	Ref string
	// Digest is the digest of the image manifest for Platform (never of an
	// index).
	Digest   digest.Digest
	Platform ocispec.Platform
	// Layout names the OCI layout (a named context, see Local.Name) that
	// holds the image; empty for a registry or the local image store.
	Layout string
}

// Local is a directory of the client: the build context or a named one. It has
// no inputs, and its identity is that of the contents that are used.
type Local struct {
	// Name is "context", "dockerfile" or the name of a build context.
	Name string
	// Exclude holds .dockerignore patterns in their order (see
	// parser/ignore); IgnoreFile is the file that they come from, for error
	// messages.
	Exclude    []string
	IgnoreFile string
}

// Git is the tree of a commit. It has no inputs.
type Git struct {
	Remote string // clone URL
	// Ref is a branch, a tag or a commit; empty for the remote's default.
	Ref            string
	Checksum       string // commit that Ref must resolve to, or a prefix of it
	Subdir         string
	KeepGitDir     bool
	SkipSubmodules bool
	AuthToken      string // ID of the secret with a token, not its value
	// Advice: what git tells people about a checkout is shown. It does not
	// enter the key.
	Advice bool
	// Pin is the commit that Ref is known to be: it is not asked for. It does
	// not enter the key, which the commit does anyway.
	Pin string
}

// HTTP is a tree with one file, fetched by http or https. It has no inputs.
type HTTP struct {
	URL      string
	Checksum digest.Digest // expected content; empty for any
	Filename string        // base name of the file in the tree
	Mode     uint32        // permission bits; 0 means 0600
	UID, GID int
	// Pin is the digest that the file is known to have: the server is not
	// asked. It does not enter the key, which the digest does anyway.
	Pin digest.Digest
}

// Pinned is h with the pin, if there is one, as the content to be expected.
func (h *HTTP) Pinned() *HTTP {
	if h.Pin == "" {
		return h
	}
	pinned := *h
	pinned.Checksum = h.Pin
	return &pinned
}

// NetworkMode says which network a process sees.
type NetworkMode string

// The network modes of an Exec.
const (
	NetworkDefault NetworkMode = ""     // isolated, with access to the outside
	NetworkNone    NetworkMode = "none" // loopback only
	NetworkHost    NetworkMode = "host"
)

// Exec runs a process. Inputs[0] is its root file system, writable; result 0
// is that tree with one more layer.
type Exec struct {
	Args []string
	Env  []string // NAME=value
	Dir  string   // absolute; created if it is missing
	User string   // user[:group] by name or number, looked up in the root; empty is root

	Network  NetworkMode
	Insecure bool // --security=insecure: all capabilities, no seccomp, writable /sys and /proc
	Hostname string
	Hosts    []Host // additional /etc/hosts entries
	Mounts   []Mount
	Ulimits  []Ulimit
	ShmSize  int64 // bytes of /dev/shm; 0 is 64 MiB
	// ReadonlyRoot discards what is written to the root; LLB only.
	ReadonlyRoot bool
	// ExitCodes are the exit codes that count as success; empty is {0}.
	ExitCodes []int
	// Devices are those of the machine that the process gets.
	Devices []Device

	// What follows does not enter the key.

	Proxy     []string // proxy variables added to the environment of the process, NAME=value
	Resources Resources
	// Args for people: the build args the step sees, NAME=value, for
	// progress and for the record of why it ran.
	BuildArgs []string
}

// Device is a device by its CDI name, "vendor.com/kind=name", or that of a kind or
// class. If an Optional one is not there, the step does without.
type Device struct {
	Name     string
	Optional bool
}

// Host is an entry of /etc/hosts.
type Host struct{ Name, IP string }

// Ulimit is a resource limit by its Docker name ("nofile").
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Resources are cgroup limits; zero values mean no limit.
type Resources struct {
	Memory, MemorySwap int64 // bytes
	CPUShares          uint64
	CPUPeriod          uint64 // microseconds
	CPUQuota           int64  // microseconds
	CPUSetCPUs         string
	CPUSetMems         string
	Pids               int64
	CgroupParent       string
}

// MountType is the kind of a Mount.
type MountType string

// The kinds of mounts of RUN --mount.
const (
	MountBind   MountType = "bind"
	MountCache  MountType = "cache"
	MountTmpfs  MountType = "tmpfs"
	MountSecret MountType = "secret"
	MountSSH    MountType = "ssh"
)

// Sharing says what happens when several steps use one cache mount at once.
type Sharing string

// The sharing modes of cache mounts.
const (
	SharingShared  Sharing = "shared" // all write at once
	SharingPrivate Sharing = "private"
	SharingLocked  Sharing = "locked" // one at a time
)

// Mount is one more file system in an Exec's root.
type Mount struct {
	Type   MountType
	Target string // absolute path in the root
	// Given is Target as it was written, where that is not clean ("/cache/").
	// BuildKit's caches know steps by it; it does not enter our keys.
	Given string

	// Input is the index in Step.Inputs that a Bind shows, or that a Cache
	// starts from; -1 for none (an empty directory).
	Input int
	// Source is the path within the input.
	Source string
	// Readonly: writes fail. A writable Bind without Output takes writes and
	// forgets them.
	Readonly bool
	// Output is the index of the step's result that holds what was written
	// to a Bind; 0 for none. LLB only.
	Output int

	ID      string // of a Cache, Secret or SSH mount
	Sharing Sharing

	// Secret and SSH. A Secret with Env set is an environment variable, and
	// it is a file only if Target is set too.
	Env      string
	Required bool

	// Mode, UID and GID are those of a secret file, an SSH socket or a new
	// cache directory, where a Mode of 0 means that none of them was given
	// (it is 0755 and root's then).
	Mode     uint32
	UID, GID int

	Size int64 // bytes of a Tmpfs; 0 for no limit
}

// File changes files without running anything. Inputs[0] is the tree it starts
// from (nil for scratch); the result is that tree with one more layer.
type File struct {
	Actions []Action
}

// Action is one of *Copy, *Mkdir, *Mkfile, *Symlink and *Remove. The set is closed.
type Action interface{ action() }

func (*Copy) action()    {}
func (*Mkdir) action()   {}
func (*Mkfile) action()  {}
func (*Symlink) action() {}
func (*Remove) action()  {}

// Owner names an owner as --chown does. Users and groups that aren't numbers
// are looked up in the tree that the file op starts from.
type Owner struct {
	User  string // name or number; empty is 0
	Group string // name or number; empty is the user's primary group, or the same number as User's
}

// Copy copies from another input.
type Copy struct {
	Input  int    // index in Step.Inputs of the source, at least 1
	Source string // path or pattern in the source, rooted at "/"
	Dest   string // absolute path; a trailing slash, "/." or several sources make it a directory

	Wildcard      bool // Source is a pattern
	AllowNoMatch  bool // a pattern without matches is no error
	ContentsOnly  bool // a directory's contents are copied, not itself
	FollowLinks   bool // a symlink as the source itself is followed
	CreateParents bool
	Unpack        bool // local archives are unpacked (ADD)
	// Include and Exclude filter by patterns relative to the source.
	Include, Exclude []string
	Required         []string // paths that must exist in the source whatever Include matches

	Owner *Owner // nil: 0:0 for Local, Git and HTTP sources, else the owner in the source
	// Mode is octal ("0755") or symbolic ("u+x,go-w"); empty keeps the mode.
	Mode string
}

// Mkdir creates a directory.
type Mkdir struct {
	Path    string // absolute
	Mode    uint32
	Parents bool // with parents, and no error if it exists
	Owner   *Owner
}

// Mkfile creates a file, or replaces it.
type Mkfile struct {
	Path  string
	Mode  uint32
	Data  []byte
	Owner *Owner
}

// Symlink creates a symbolic link.
type Symlink struct {
	Path, Target string
	Owner        *Owner
}

// Remove removes a file or tree.
type Remove struct {
	Path         string
	Wildcard     bool
	AllowMissing bool
}

// Merge stacks its inputs, the first one lowest.
type Merge struct{}

// Diff is what Inputs[1] has over Inputs[0].
type Diff struct{}
