package parser

import (
	"fmt"
	"path"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strake-build/strake/plan"
)

// addMounts adds the mounts of RUN --mount.
func (x *execBuilder) addMounts(c *instructions.RunCommand) error {
	for i, m := range instructions.GetMounts(c) {
		var from *stage
		if i < len(x.current.sources) {
			from = x.current.sources[i]
		}
		var mount plan.Mount
		var err error
		switch m.Type {
		case instructions.MountTypeSecret:
			if mount, err = x.secret(m); err == nil {
				x.needs.secrets = append(x.needs.secrets, Need{mount.ID, mount.Required, x.t.file.sourceAt(c.Location())})
			}
		case instructions.MountTypeSSH:
			if mount, err = x.ssh(m); err == nil {
				x.needs.ssh = append(x.needs.ssh, Need{mount.ID, mount.Required, x.t.file.sourceAt(c.Location())})
			}
		case instructions.MountTypeTmpfs:
			mount = plan.Mount{Type: plan.MountTmpfs, Input: -1, Size: m.SizeLimit, Readonly: m.ReadOnly}
		case instructions.MountTypeCache:
			mount, err = x.cache(m, from)
		default:
			mount, err = x.bind(m, from)
		}
		if err == nil && mount.Target == "" && mount.Env == "" {
			mount.Target, err = x.mountTarget(m)
			if path.IsAbs(m.Target) && m.Target != mount.Target {
				mount.Given = m.Target
			}
		}
		if err != nil {
			return fmt.Errorf("RUN --mount=type=%s: %w", m.Type, err)
		}
		x.mounts = append(x.mounts, mount)
	}
	return nil
}

// mountTarget is where a mount is seen.
func (x *execBuilder) mountTarget(m *instructions.Mount) (string, error) {
	target := path.Clean(m.Target)
	if !path.IsAbs(target) {
		target = path.Join(x.dir, m.Target)
	}
	if target == "/" {
		return "", fmt.Errorf("the target can't be the root")
	}
	return target, nil
}

// mountSource is the tree a mount shows, which is the build context if it names
// none.
func (x *execBuilder) mountSource(m *instructions.Mount, from *stage) (*plan.Step, error) {
	switch {
	case from != nil && !from.done:
		return nil, fmt.Errorf("stage %q comes after this instruction", m.From)
	case from != nil:
		return from.step, nil
	case m.From == scratch:
		return nil, nil
	}
	return x.mainContext()
}

func (x *execBuilder) bind(m *instructions.Mount, from *stage) (plan.Mount, error) {
	src, err := x.mountSource(m, from)
	return plan.Mount{
		Type: plan.MountBind, Input: x.addInput(src), Source: path.Join("/", m.Source), Readonly: m.ReadOnly,
	}, err
}

func (x *execBuilder) cache(m *instructions.Mount, from *stage) (plan.Mount, error) {
	mount := plan.Mount{
		Type: plan.MountCache, Input: -1, Source: path.Join("/", m.Source), Readonly: m.ReadOnly,
		ID: m.CacheID, Sharing: plan.SharingShared,
	}
	if m.From != "" {
		src, err := x.mountSource(m, from)
		if err != nil {
			return mount, err
		}
		mount.Input = x.addInput(src)
	}
	switch m.CacheSharing {
	case instructions.MountSharingPrivate:
		mount.Sharing = plan.SharingPrivate
	case instructions.MountSharingLocked:
		mount.Sharing = plan.SharingLocked
	}
	if mount.ID == "" {
		mount.ID = path.Clean(m.Target)
	}
	if ns := x.t.args["BUILDKIT_CACHE_MOUNT_NS"]; ns != "" {
		mount.ID = ns + "/" + mount.ID
	}
	setFileInfo(&mount, m)
	if mount.Mode == 0 && (m.UID != nil || m.GID != nil || m.Mode != nil) {
		mount.Mode = 0o755
	}
	return mount, nil
}

func (x *execBuilder) secret(m *instructions.Mount) (plan.Mount, error) {
	mount := plan.Mount{Type: plan.MountSecret, Input: -1, ID: m.CacheID, Required: m.Required, Mode: 0o400}
	if m.Source != "" {
		mount.ID = m.Source
	}
	if mount.ID == "" {
		if m.Target == "" {
			return mount, fmt.Errorf("neither id nor target is given")
		}
		mount.ID = path.Base(m.Target)
	}
	if m.Target != "" {
		mount.Target = path.Join("/", m.Target)
	}
	if m.Env != nil {
		if mount.Env = *m.Env; mount.Env == "" {
			mount.Env = mount.ID
		}
		x.hidden[mount.Env] = true
	} else if mount.Target == "" {
		mount.Target = path.Join("/run/secrets", path.Base(mount.ID))
	}
	setFileInfo(&mount, m)
	return mount, nil
}

func (x *execBuilder) ssh(m *instructions.Mount) (plan.Mount, error) {
	if m.Source != "" {
		return plan.Mount{}, fmt.Errorf("there is no source")
	}
	mount := plan.Mount{Type: plan.MountSSH, Input: -1, ID: m.CacheID, Required: m.Required, Mode: 0o600}
	if mount.ID == "" {
		mount.ID = "default"
	}
	if m.Target != "" {
		mount.Target = path.Join("/", m.Target)
	} else {
		mount.Target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", x.sshCount)
	}
	if x.sshCount == 0 {
		x.sshTarget = mount.Target
	}
	x.sshCount++
	setFileInfo(&mount, m)
	return mount, nil
}

// setFileInfo sets the owner and mode that the instruction gives.
func setFileInfo(mount *plan.Mount, m *instructions.Mount) {
	if m.UID != nil {
		mount.UID = int(*m.UID)
	}
	if m.GID != nil {
		mount.GID = int(*m.GID)
	}
	if m.Mode != nil {
		mount.Mode = uint32(*m.Mode)
	}
}

// mainContext is the step of the build context.
func (s *stage) mainContext() (*plan.Step, error) {
	t := s.t
	local := &plan.Local{Name: "context", Exclude: t.o.Exclude, IgnoreFile: t.o.IgnoreFile}
	if c, ok := t.o.Contexts["context"]; ok {
		switch {
		case c.Step != nil:
			return c.Step, nil
		case c.Local != "":
			local = &plan.Local{Name: c.Local, Exclude: c.Exclude, IgnoreFile: c.IgnoreFile}
		case t.mainBase != nil && t.mainBase.op == nil:
			return nil, nil
		case t.mainBase != nil:
			return t.share(&plan.Step{Op: t.mainBase.op, Platform: t.mainBase.platform, Name: t.mainBase.name}), nil
		}
	}
	return t.share(&plan.Step{Op: local, Name: "[internal] load build context", Internal: true}), nil
}
