package main

import "testing"

func TestGreeting(t *testing.T) {
	if got := greeting([]string{"you", "me"}); got != "hello, you and me" {
		t.Errorf("got %q", got)
	}
}
