package buildkitapi

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
)

// credentialWait bounds how long a client may take: it may have to ask its user,
// or a cloud.
const credentialWait = time.Minute

// credentials asks the client for what it has for a registry. They are used by
// its own build alone, and sent nowhere but to that registry and the token server
// it names; the daemon's own are never used for a client.
func (j *job) credentials(ctx context.Context, host string) (username, secret string, err error) {
	if j.session == "" {
		return "", "", nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, credentialWait, fmt.Errorf("the client gave no credentials for %s in time", host))
	defer cancel()
	c, err := j.s.caller(ctx, j.session)
	if err != nil {
		return "", "", err
	}
	r, err := auth.NewAuthClient(c.Conn()).Credentials(ctx, &auth.CredentialsRequest{Host: host})
	if grpcerrors.Code(err) == codes.Unimplemented {
		return "", "", nil
	}
	if err != nil {
		return "", "", fmt.Errorf("ask the client for credentials for %s: %w", host, ended(ctx, err))
	}
	return r.Username, r.Secret, nil
}
