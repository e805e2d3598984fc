from bdd_seg.cli.study import main

if __name__ == '__main__':
    main()
