module example.com/layout
