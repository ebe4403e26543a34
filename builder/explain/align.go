package explain

import (
	"regexp"
	"slices"
	"strings"

	"github.com/strake-build/strake/state/builds"
)

// stepName is the display name of a step: "[linux/arm64 build 2/4] RUN make".
var stepName = regexp.MustCompile(`^\[([^\]]*?) *\d+/\d+\] (?s:(.*))$`)

// splitName splits a name into the stage and the text of the step.
func splitName(s builds.Step) (stage, text string) {
	m := stepName.FindStringSubmatch(s.Name)
	if m == nil {
		return "", s.Name
	}
	stage = m[1]
	if first, rest, _ := strings.Cut(stage, " "); strings.Contains(first, "/") {
		stage = rest
	}
	return stage, strings.TrimPrefix(m[2], "ONBUILD ")
}

func splitGroup(s builds.Step) string {
	g, _ := splitName(s)
	return g
}

// alignable is a step with its name split.
type alignable struct {
	*builds.Step
	stage, text string
}

func splitAll(steps []builds.Step) []alignable {
	list := make([]alignable, len(steps))
	for i := range steps {
		list[i].Step = &steps[i]
		list[i].stage, list[i].text = splitName(steps[i])
	}
	return list
}

// align finds for each step of a build the one of an earlier build that has its
// place: its index, -1 if there is none.
func align(nowSteps, oldSteps []builds.Step) []int {
	now, old := splitAll(nowSteps), splitAll(oldSteps)
	type group struct{ now, old []int }
	groups := map[string]*group{}
	var order []*group
	of := func(s alignable) *group {
		key := s.Platform + "\x00" + s.stage
		g := groups[key]
		if g == nil {
			g = &group{}
			groups[key] = g
			order = append(order, g)
		}
		return g
	}
	for i, s := range now {
		g := of(s)
		g.now = append(g.now, i)
	}
	for i, s := range old {
		g := of(s)
		g.old = append(g.old, i)
	}
	to := make([]int, len(now))
	for i := range to {
		to[i] = -1
	}
	for _, g := range order {
		alignGroup(now, old, g.now, g.old, to)
	}
	// A stage may have another name now, or the step be in another one.
	taken := map[int]bool{}
	for _, o := range to {
		if o >= 0 {
			taken[o] = true
		}
	}
	for i := range now {
		if to[i] >= 0 {
			continue
		}
		for o := range old {
			if !taken[o] && old[o].Kind == now[i].Kind && old[o].Platform == now[i].Platform && (old[o].text == now[i].text || now[i].Key != "" && now[i].Key == old[o].Key) {
				to[i], taken[o] = o, true
				break
			}
		}
	}
	return to
}

// maxTable bounds the work of an alignment: steps times steps.
const maxTable = 4 << 20

// alignGroup aligns the steps of one stage: those of equal text by the longest
// common sequence, and in the gaps the most similar ones.
func alignGroup(now, old []alignable, a, b []int, to []int) {
	same := func(i, j int) bool { return now[i].Kind == old[j].Kind && now[i].text == old[j].text }
	if len(a)*len(b) > maxTable {
		b = b[:maxTable/len(a)]
	}
	n, m := len(a), len(b)
	table := make([][]int32, n+1)
	for i := range table {
		table[i] = make([]int32, m+1)
	}
	for i := n - 1; i >= 0; i-- {
		for j := m - 1; j >= 0; j-- {
			if same(a[i], b[j]) {
				table[i][j] = table[i+1][j+1] + 1
			} else {
				table[i][j] = max(table[i+1][j], table[i][j+1])
			}
		}
	}
	var gapA, gapB []int
	flush := func() {
		pairSimilar(now, old, gapA, gapB, to)
		gapA, gapB = nil, nil
	}
	i, j := 0, 0
	for i < n && j < m {
		switch {
		case same(a[i], b[j]) && table[i][j] == table[i+1][j+1]+1:
			flush()
			to[a[i]] = b[j]
			i, j = i+1, j+1
		case table[i+1][j] >= table[i][j+1]:
			gapA = append(gapA, a[i])
			i++
		default:
			gapB = append(gapB, b[j])
			j++
		}
	}
	gapA, gapB = append(gapA, a[i:]...), append(gapB, b[j:]...)
	flush()
}

// pairSimilar pairs steps of one kind, the most similar ones first.
func pairSimilar(now, old []alignable, a, b []int, to []int) {
	type pair struct {
		i, j int
		like float64
	}
	var pairs []pair
	if len(a)*len(b) > maxTable/64 {
		return
	}
	for _, i := range a {
		for _, j := range b {
			if now[i].Kind == old[j].Kind {
				pairs = append(pairs, pair{i, j, similar(now[i].text, old[j].text)})
			}
		}
	}
	slices.SortStableFunc(pairs, func(p, q pair) int {
		switch {
		case p.like > q.like:
			return -1
		case p.like < q.like:
			return 1
		}
		return 0
	})
	taken := map[int]bool{}
	for _, p := range pairs {
		if to[p.i] < 0 && !taken[p.j] {
			to[p.i] = p.j
			taken[p.j] = true
		}
	}
}

// similar is how much of two texts is a common beginning or end, 0 to 1.
func similar(x, y string) float64 {
	n := min(len(x), len(y))
	head := 0
	for head < n && x[head] == y[head] {
		head++
	}
	tail := 0
	for tail < n-head && x[len(x)-1-tail] == y[len(y)-1-tail] {
		tail++
	}
	return float64(head+tail) / float64(max(len(x), len(y), 1))
}
