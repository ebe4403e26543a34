// Command hello greets.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	fmt.Println(greeting(os.Args[1:]))
}

func greeting(names []string) string {
	return "hello, " + strings.Join(names, " and ")
}
