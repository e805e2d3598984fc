from bdd_seg.cli.scenes import main

if __name__ == '__main__':
    main()
