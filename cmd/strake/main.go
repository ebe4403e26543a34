// Command strake builds container images.
package main

func main() {}
