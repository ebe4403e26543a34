package flight

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestCallersShareOneRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		var runs atomic.Int32
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				v, err := g.Do(t.Context(), "k", func(context.Context) (int, error) {
					time.Sleep(time.Second)
					return int(runs.Add(1)), nil
				})
				if v != 1 || err != nil {
					t.Errorf("got %d, %v, want 1, nil", v, err)
				}
			})
		}
		wg.Wait()

		v, err := g.Do(t.Context(), "k", func(context.Context) (int, error) { return int(runs.Add(1)), nil })
		if v != 2 || err != nil {
			t.Errorf("after the flight: got %d, %v, want a new run", v, err)
		}
		if len(g.flights) != 0 {
			t.Errorf("%d flights left", len(g.flights))
		}
	})
}

func TestKeysAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string]
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 5 {
			key := fmt.Sprint(i)
			wg.Go(func() {
				v, err := g.Do(t.Context(), key, func(context.Context) (string, error) {
					time.Sleep(time.Second)
					return key, nil
				})
				if v != key || err != nil {
					t.Errorf("got %q, %v, want %q", v, err, key)
				}
			})
		}
		wg.Wait()
		if d := time.Since(start); d != time.Second {
			t.Errorf("took %v, want 1s: they should run at once", d)
		}
	})
}

func TestErrorIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		want := errors.New("broken")
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				_, err := g.Do(t.Context(), "k", func(context.Context) (int, error) {
					time.Sleep(time.Second)
					return 0, want
				})
				if err != want {
					t.Errorf("got %v, want %v", err, want)
				}
			})
		}
		wg.Wait()
	})
}

func TestCallerLeavesAndRunGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		gone := errors.New("first caller has gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		fn := func(ctx context.Context) (int, error) {
			select {
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			case <-time.After(10 * time.Second):
				return 7, nil
			}
		}
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := g.Do(ctx, "k", fn)
			if err != gone {
				t.Errorf("first caller got %v, want %v", err, gone)
			}
			if d := time.Since(start); d != time.Second {
				t.Errorf("first caller left after %v, want 1s", d)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if v, err := g.Do(t.Context(), "k", fn); v != 7 || err != nil {
				t.Errorf("second caller got %d, %v, want 7, nil", v, err)
			}
			if d := time.Since(start); d != 10*time.Second {
				t.Errorf("second caller was done after %v, want 10s", d)
			}
		})
		time.Sleep(time.Second)
		cancel(gone)
		wg.Wait()
	})
}

func TestLastCallerCancelsAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		var causes []error
		returned := false
		fn := func(ctx context.Context) (int, error) {
			<-ctx.Done()
			causes = append(causes, context.Cause(ctx))
			time.Sleep(time.Second) // cleaning up
			returned = true
			return 0, ctx.Err()
		}
		var wg sync.WaitGroup
		first, last := errors.New("first"), errors.New("last")
		ctx1, cancel1 := context.WithCancelCause(t.Context())
		ctx2, cancel2 := context.WithCancelCause(t.Context())
		wg.Go(func() {
			if _, err := g.Do(ctx1, "k", fn); err != first {
				t.Errorf("got %v, want %v", err, first)
			}
			if returned {
				t.Error("first caller waited for the run")
			}
		})
		wg.Go(func() {
			if _, err := g.Do(ctx2, "k", fn); err != last {
				t.Errorf("got %v, want %v", err, last)
			}
			if !returned {
				t.Error("last caller left while fn was running")
			}
		})
		synctest.Wait()
		cancel1(first)
		synctest.Wait()
		if len(causes) != 0 {
			t.Error("cancelled while a caller was waiting")
		}
		cancel2(last)
		wg.Wait()
		if len(causes) != 1 || causes[0] != last {
			t.Errorf("fn's context ended with %v, want %v", causes, last)
		}
	})
}

func TestCallerAfterCancelStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		var running, runs atomic.Int32
		fn := func(ctx context.Context) (int, error) {
			if n := running.Add(1); n != 1 {
				t.Errorf("%d run at once", n)
			}
			defer running.Add(-1)
			n := int(runs.Add(1))
			if n == 1 {
				<-ctx.Done()
				time.Sleep(time.Second)
				return 0, context.Cause(ctx)
			}
			return n, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := g.Do(ctx, "k", fn); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled caller got %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()

		short, cancelShort := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancelShort()
		if _, err := g.Do(short, "k", fn); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller that could not wait got %v", err)
		}
		if v, err := g.Do(t.Context(), "k", fn); v != 2 || err != nil {
			t.Errorf("got %d, %v, want the second run", v, err)
		}
		wg.Wait()
	})
}

func TestContextEndedBefore(t *testing.T) {
	t.Parallel()
	var g Group[int]
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, err := g.Do(ctx, "k", func(context.Context) (int, error) {
		t.Error("fn was called")
		return 0, nil
	})
	if err != why {
		t.Errorf("got %v, want %v", err, why)
	}
}

func TestPanicReachesEveryCaller(t *testing.T) {
	for name, fn := range map[string]func(){
		"boom":   func() { panic("boom") },
		"Goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group[int]
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						defer func() {
							if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), name) {
								t.Errorf("recovered %v, want %q", r, name)
							}
						}()
						g.Do(t.Context(), "k", func(context.Context) (int, error) {
							time.Sleep(time.Second)
							fn()
							return 0, nil
						})
						t.Error("Do returned")
					})
				}
				wg.Wait()
				if v, err := g.Do(t.Context(), "k", func(context.Context) (int, error) { return 1, nil }); v != 1 || err != nil {
					t.Errorf("after the panic: got %d, %v, want 1, nil", v, err)
				}
			})
		})
	}
}
